"""One case of the selection's proof: measure a pair of the laboratory, choose alpha, look it up.

The requests of the evaluation are dealt in three: the selection sees answers and rewards on its
own, the oracle picks alpha by the truth on another part, and the truth of what was picked is
measured on the rest. Requests are drawn at random already, so cutting the list is dealing.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.proof_answers import GUARD, SCORER, Answers, line_of
from expo_ray.extrapolation import diagnose
from expo_ray.lab import LabResult, LabSettings, truth_reward
from expo_ray.lab.data import requests_for
from expo_ray.lab.models import save_checkpoint
from expo_ray.lab.settings import CODE_VERSION
from expo_ray.lab.tasks.lists import TEMPLATES, TRUTH_VERSION
from expo_ray.rewards import RewardModel, load_reward_model
from expo_ray.selection import SelectionSettings
from expo_ray.serving.engines.interface import Generated, Row
from expo_ray.serving.engines.transformers_engine import TransformersEngine
from expo_ray.serving.sampling import SamplingParams
from expo_ray.serving.source import ModelSource
from expo_ray.tables import RESPONSES_SCHEMA, REWARDS_SCHEMA, Message, Prompt, assign_splits
from expo_ray.tables.seeds import row_seed

Kind = Literal["run", "unrelated", "random-direction"]
CONTROLS: tuple[Kind, ...] = ("unrelated", "random-direction")


@dataclass(frozen=True, kw_only=True, slots=True)
class Frozen:
    """What was fixed before the fresh seeds were run; the reasons stand where it is made."""

    lab: LabSettings
    """Seed and fraction are each case's own."""
    selection: SelectionSettings
    sampling: SamplingParams
    alphas: tuple[float, ...]
    num_selection_requests: int
    num_selection_templates: int
    num_truth_requests: int
    """As many again are the oracle's; each in all templates."""
    batch_size: int = 260

    def digest(self) -> str:
        """Return what tells recorded lines of other settings apart."""
        lab = self.lab.model_dump(
            mode="json", exclude={"seed", "preference_fraction", *self.lab.unused}
        )
        # A rule that came later, where it changes nothing: lines from before stay valid.
        unused = set() if self.selection.report_only else {"report_only"}
        facts = {
            **asdict(self),
            "lab": lab,
            "selection": self.selection.model_dump(mode="json", exclude=unused),
            "sampling": self.sampling.model_dump(mode="json"),
            "versions": [CODE_VERSION, TRUTH_VERSION],
        }
        return _digest(facts)

    def tables_digest(self) -> str:
        """Return the same of what the models answered: the rules of choice do not matter."""
        lab = self.lab.model_dump(
            mode="json", exclude={"seed", "preference_fraction", *self.lab.unused}
        )
        facts = {
            **{key: value for key, value in asdict(self).items() if key != "selection"},
            "lab": lab,
            "sampling": self.sampling.model_dump(mode="json"),
            "versions": [CODE_VERSION, TRUTH_VERSION],
        }
        return _digest(facts)

    def lab_of(self, case: Case) -> LabSettings:
        """Return the laboratory that a case needs."""
        update: dict[str, Any] = {"seed": case.seed, "preference_fraction": case.fraction}
        if case.judge is not None:
            # Its reward models are not asked: the least that can be trained.
            update |= {"num_reward_pairs": 1, "guard_reward_model": False}
        return LabSettings.model_validate({**self.lab.model_dump(), **update})


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A run, or a negative control on the models of one."""

    kind: Kind
    seed: int
    fraction: float
    other: int = 0
    """Unrelated models: whose initial model is taken."""
    judge: int | None = None
    """The run whose reward models judge; None where they are those of the same seed."""

    @property
    def key(self) -> str:
        """Name of the case in the results."""
        name = f"{self.kind} seed={self.seed} fraction={self.fraction:g}"
        return f"{name} other={self.other}" if self.kind == "unrelated" else name

    @property
    def folder(self) -> str:
        """Name of the folder of its tables."""
        return self.key.replace(" ", "_")


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def measure_case(
    case: Case,
    frozen: Frozen,
    lab: LabResult,
    other: LabResult | None = None,
    judges: LabResult | None = None,
    keep: Path | None = None,
) -> dict[str, Any]:
    """Return the line of a case.

    Args:
        case: What to measure.
        frozen: The settings.
        lab: Its laboratory.
        other: Unrelated models: the laboratory whose initial model is taken.
        judges: The laboratory whose reward models judge, where that is another one.
        keep: Folder for what was answered, from which other rules can choose anew.
    """
    settings = frozen.lab_of(case)
    with ExitStack() as stack:
        initial = lab.initial
        if case.kind != "run":
            initial = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            _write_control(case, lab, other, initial)
        pair = ModelSource(model=str(lab.aligned), initial=str(initial), alpha=0.0)
        bench = _Bench(frozen=frozen, settings=settings, pair=pair, judged_by=judges or lab)
        fit = diagnose(str(initial), str(lab.aligned), address="inline").fit
        answers = bench.answer(with_truth=case.kind == "run")
        line = facts_of(case, frozen, fit) | line_of(answers, case, frozen, bench.truth_of)
    if keep is not None:
        facts = facts_of(case, frozen, fit) | {"tables_digest": frozen.tables_digest()}
        answers.write(keep / case.folder, facts=facts)
    return line


def facts_of(case: Case, frozen: Frozen, fit: bool) -> dict[str, Any]:
    """Return what is known of a case before anything is chosen."""
    return {**asdict(case), "key": case.key, "digest": frozen.digest(), "fit": fit}


def prompts_of(settings: LabSettings, frozen: Frozen) -> dict[str, list[Prompt]]:
    """Deal the evaluation requests to selection, oracle and truth."""
    requests = requests_for(settings, "evaluation")
    parts = {
        "selection": (frozen.num_selection_requests, frozen.num_selection_templates),
        "oracle": (frozen.num_truth_requests, len(TEMPLATES)),
        "truth": (frozen.num_truth_requests, len(TEMPLATES)),
    }
    dealt: dict[str, list[Prompt]] = {}
    start = 0
    for name, (num_requests, num_templates) in parts.items():
        dealt[name] = [
            Prompt(
                prompt_id=f"{start + i:04d}/{j}",
                messages=({"role": "user", "content": request.text(TEMPLATES[t])},),
            )
            for i, request in enumerate(requests[start : start + num_requests])
            for j in range(num_templates)
            for t in [(i + j) % len(TEMPLATES)]
        ]
        start += num_requests
    if start > len(requests):
        raise ValueError(f"{start} requests are dealt, there are {len(requests)}")
    return dealt


@dataclass(kw_only=True)
class _Bench:
    """The models of one case, in this process; its tables grow by one candidate at a time."""

    frozen: Frozen
    settings: LabSettings
    pair: ModelSource
    judged_by: LabResult
    responses: list[dict[str, Any]] = field(default_factory=list)
    rewards: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    curves: dict[float, dict[str, float]] = field(default_factory=dict)
    truths: dict[float, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.engine = TransformersEngine()
        self.prompts = prompts_of(self.settings, self.frozen)
        folders = {
            SCORER: self.judged_by.reward_model,
            GUARD: self.judged_by.guard_reward_model,
        }
        self.judges = {name: load_reward_model(str(path)) for name, path in folders.items()}

    def answer(self, *, with_truth: bool) -> Answers:
        """Answer and score by every candidate; measure the truth of them all, where asked to."""
        for alpha in self.frozen.alphas:
            self.engine.load(self.pair.at(alpha))
            self.answer_selection(alpha)
            if with_truth:
                self.curves[alpha]["oracle_truth"] = float(self.truth("oracle").mean())
                self.truths[alpha] = self.truth("truth").tolist()
        return Answers(
            responses=pa.Table.from_pylist(self.responses, RESPONSES_SCHEMA),
            rewards={n: pa.Table.from_pylist(r, REWARDS_SCHEMA) for n, r in self.rewards.items()},
            curves=self.curves,
            truths=self.truths,
            race_seed=self.settings.derive_seed("proof"),
        )

    def truth_of(self, alpha: float) -> list[float]:
        """Return the truth of each request under one candidate."""
        if alpha not in self.truths:
            self.engine.load(self.pair.at(alpha))
            self.truths[alpha] = self.truth("truth").tolist()
        return self.truths[alpha]

    def answer_selection(self, alpha: float) -> None:
        """Answer the selection's prompts and score the answers."""
        prompts = self.prompts["selection"]
        splits = self.splits()
        answers = self.generate(prompts)
        keys = [
            {
                "prompt_id": prompt.prompt_id,
                "sample": 0,
                "split": splits[prompt.prompt_id],
                "alpha": alpha,
                "weights_digest": self.engine.weights_digest,
                "seed": self.seed_of(prompt),
            }
            for prompt in prompts
        ]
        self.responses += response_rows(keys, prompts, answers)
        self.curves[alpha] = {"tokens": float(np.mean([a.completion_tokens for a in answers]))}
        for name, judge in self.judges.items():
            scored = reward_rows(judge, keys, prompts, answers)
            self.rewards.setdefault(name, []).extend(scored)
            self.curves[alpha][name] = float(np.mean([row["reward"] for row in scored]))

    def truth(self, part: str) -> npt.NDArray[np.float64]:
        """Return the mean truth of each request of a part under the loaded weights."""
        prompts = self.prompts[part]
        answers = self.generate(prompts)
        scores = [
            truth_reward(prompt.messages, answer.text)
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        # The templates of a request share its words: the request is what was drawn at random.
        return np.array(scores).reshape(self.frozen.num_truth_requests, -1).mean(axis=1)

    def splits(self) -> dict[str, str]:
        """Return the split of every prompt that the selection sees."""
        ids = [prompt.prompt_id for prompt in self.prompts["selection"]]
        return dict(assign_splits(ids, heldout_fraction=0.5, seed=42))

    def generate(self, prompts: Sequence[Prompt]) -> list[Generated]:
        """Answer prompts; the noise of a prompt is the same under every alpha."""
        frozen, seed = self.frozen, self.settings.derive_seed("proof")
        return generate(self.engine, prompts, frozen.sampling, seed, frozen.batch_size)

    def seed_of(self, prompt: Prompt) -> int:
        """Return the seed of a prompt's answers."""
        return row_seed(self.settings.derive_seed("proof"), prompt.prompt_id, 0)


def generate(
    engine: TransformersEngine,
    prompts: Sequence[Prompt],
    sampling: SamplingParams,
    seed: int,
    batch_size: int,
) -> list[Generated]:
    """Answer prompts; the noise of a prompt follows the seed alone, whatever the weights."""
    rows = [
        Row(
            prompt_ids=engine.encode_chat(prompt.messages),
            params=sampling,
            seed=row_seed(seed, prompt.prompt_id, 0),
            max_tokens=sampling.max_tokens,
        )
        for prompt in prompts
    ]
    batches = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
    return [answer for batch in batches for answer in engine.generate(batch)]


def response_rows(
    keys: Sequence[dict[str, Any]], prompts: Sequence[Prompt], answers: Sequence[Generated]
) -> list[dict[str, Any]]:
    """Return the rows of a responses table."""
    return [
        {
            **key,
            "messages": list(prompt.messages),
            "response": answer.text,
            "model": "laboratory",
            "finish_reason": answer.finish_reason,
            "prompt_tokens": answer.prompt_tokens,
            "completion_tokens": answer.completion_tokens,
            "error": answer.error,
        }
        for key, prompt, answer in zip(keys, prompts, answers, strict=True)
    ]


def reward_rows(
    judge: RewardModel,
    keys: Sequence[dict[str, Any]],
    prompts: Sequence[Prompt],
    answers: Sequence[Generated],
) -> list[dict[str, Any]]:
    """Score answers and return the rows of a rewards table."""
    chats = [
        [*prompt.messages, Message(role="assistant", content=answer.text)]
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    return [
        {
            **key,
            "reward": score.reward,
            "reward_model": judge.name,
            "reward_model_revision": judge.revision,
            "tokens": score.tokens,
            "truncated": score.truncated,
            "error": score.error,
        }
        for key, score in zip(keys, judge.score(chats), strict=True)
    ]


def _write_control(case: Case, lab: LabResult, other: LabResult | None, folder: Path) -> None:
    """Write an initial model from which the step to aligned means nothing."""
    model = AutoModelForCausalLM.from_pretrained(lab.aligned, dtype=torch.float32)
    source = lab.initial if other is None else other.initial
    before = dict(AutoModelForCausalLM.from_pretrained(source).named_parameters())
    generator = torch.Generator().manual_seed(case.seed * 1000 + case.other)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if case.kind == "unrelated":
                # Vocabularies differ by a token or two; the common rows alone are extrapolated.
                rows = min(len(weight), len(before[name]))
                weight[:rows] = before[name][:rows]
                continue
            noise = torch.randn(weight.shape, generator=generator)
            weight.sub_(noise * ((weight - before[name]).norm() / noise.norm()))
    # The tokenizer is the lab's own: what is to be refused is the weights, not a vocabulary.
    save_checkpoint(model, AutoTokenizer.from_pretrained(lab.aligned), folder)
