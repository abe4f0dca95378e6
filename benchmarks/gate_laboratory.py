"""A reward model that likes manners more than right sums: does the gate keep the sums right?

    python -m benchmarks.gate_laboratory --output results.jsonl
    python -m benchmarks.gate_laboratory --summarize results.jsonl [--write]

The laboratory's sums, with preferences in which the pleasant answer wins. Every seed aligns by DPO
on preferences of its own and trains a reward model of its own; five seeds share an initial model.
Alpha is picked by the highest reward alone, by the guarded choice without a gate, and with one: on
prompts of its own `check:number` must not fall by more than the margin. What was picked is then
measured on prompts that nobody saw, in pairs with the aligned model. The oracle takes the highest
reward among the alphas that keep the margin on further prompts of its own.

Every finished seed is one line of the output; a rerun does those that are missing.

Needs: one CPU core. Takes: about a minute a seed; every finished seed is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.gate_laboratory_page import render
from benchmarks.proof_answers import truth_gain
from benchmarks.proof_case import generate, response_rows, reward_rows
from expo_ray.checkpoints import atomic_write_text
from expo_ray.lab import LabSettings
from expo_ray.lab.data import draw_pair, draw_prompts, random_source, requests_for
from expo_ray.lab.studies.records import SUMS
from expo_ray.lab.training import train_aligned, train_initial, train_reward_model
from expo_ray.rewards import load_reward_model
from expo_ray.selection import SelectionSettings, choose_alpha
from expo_ray.selection.bootstrap import FloatArray
from expo_ray.selection.gates import Scores
from expo_ray.serving.engines.transformers_engine import TransformersEngine
from expo_ray.serving.sampling import SamplingParams
from expo_ray.serving.source import ModelSource
from expo_ray.tables import RESPONSES_SCHEMA, REWARDS_SCHEMA, Message, Prompt, assign_splits

RESULT = Path(__file__).resolve().parent / "results" / "gate_laboratory.md"
GATE = "sums"


@dataclass(frozen=True, kw_only=True, slots=True)
class Frozen:
    """What was fixed before the fresh seeds were run."""

    lab: LabSettings
    alphas: tuple[float, ...]
    margin: float = 0.05
    num_main: int = 200
    """Half of them choose, half of them confirm."""
    num_gate: int = 600
    num_oracle: int = 400
    num_truth: int = 800
    seeds_per_initial: int = 5
    batch_size: int = 200

    def digest(self) -> str:
        """Return what tells recorded lines of other settings apart."""
        text = json.dumps({**asdict(self), "lab": self.lab.model_dump(mode="json")}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def lab_of(self, seed: int) -> LabSettings:
        """Return the laboratory that a seed shares with its neighbours."""
        return self.lab.model_copy(update={"seed": seed // self.seeds_per_initial})


FROZEN = Frozen(
    lab=LabSettings(
        **SUMS,
        # All prompts that are asked here; what is left teaches all sums there are.
        num_eval_prompts=2000,
        # A right sum is worth a quarter of a polite phrase: the pleasant answer wins.
        truth_weight=0.25,
        num_reward_pairs=1600,
        # The reward model knows the answers of writers alone, as published ones do.
        damaged_share=0.0,
    ),
    # On design seed 0, asked up to 8, right sums fell from 0.5 on, and the gate let nothing pass:
    # smaller steps leave it something to find.
    alphas=(0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0),
)


@dataclass(kw_only=True)
class Bench:
    """The models of one seed, in this process; answers are kept by alpha and part."""

    frozen: Frozen
    seed: int
    initial: Path
    aligned: Path
    reward_model: Path
    engine: TransformersEngine = field(default_factory=TransformersEngine)
    known: dict[tuple[str, float], FloatArray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        lab = self.frozen.lab_of(self.seed)
        self.noise = lab.derive_seed(f"gate-laboratory/{self.seed}")
        self.parts = deal(self.frozen, lab, self.seed)
        self.judge = load_reward_model(str(self.reward_model))
        self.check = load_reward_model("check:number")
        self.loaded: float | None = None

    def answers(self, part: str, alpha: float) -> list[Any]:
        """Answer the prompts of a part under an alpha."""
        if self.loaded != alpha:
            pair = ModelSource(model=str(self.aligned), initial=str(self.initial), alpha=0.0)
            self.engine.load(pair.at(alpha))
            self.loaded = alpha
        prompts = [prompt for prompt, _ in self.parts[part]]
        sampling = SamplingParams(max_tokens=self.frozen.lab.max_new_tokens)
        return generate(self.engine, prompts, sampling, self.noise, self.frozen.batch_size)

    def right(self, part: str, alpha: float) -> FloatArray:
        """Return which answers of a part the check calls right."""
        if (part, alpha) not in self.known:
            chats = [
                [*prompt.messages, Message(role="assistant", content=answer.text)]
                for (prompt, _), answer in zip(
                    self.parts[part], self.answers(part, alpha), strict=True
                )
            ]
            scores = self.check.score(chats, [right for _, right in self.parts[part]])
            self.known[part, alpha] = np.array([one.reward for one in scores], dtype=float)
        return self.known[part, alpha]

    def gate(self, alpha: float) -> list[Scores]:
        """Return what the gate compares."""
        return [
            Scores(
                name=GATE,
                prompts=GATE,
                reward_model="check-number",
                aligned=self.right("gate", 0.0),
                candidate=self.right("gate", alpha),
            )
        ]

    def main_tables(self) -> tuple[pa.Table, pa.Table, dict[float, float]]:
        """Answer and score the main prompts by every alpha; return the mean rewards too."""
        prompts = [prompt for prompt, _ in self.parts["main"]]
        splits = dict(assign_splits([p.prompt_id for p in prompts], heldout_fraction=0.5, seed=42))
        responses: list[dict[str, Any]] = []
        rewards: list[dict[str, Any]] = []
        means: dict[float, float] = {}
        for alpha in self.frozen.alphas:
            answers = self.answers("main", alpha)
            keys = [
                {
                    "prompt_id": prompt.prompt_id,
                    "sample": 0,
                    "split": splits[prompt.prompt_id],
                    "alpha": alpha,
                    "weights_digest": self.engine.weights_digest,
                    "seed": self.noise,
                }
                for prompt in prompts
            ]
            responses += response_rows(keys, prompts, answers)
            scored = reward_rows(self.judge, keys, prompts, answers)
            rewards += scored
            means[alpha] = float(np.mean([row["reward"] for row in scored]))
        return (
            pa.Table.from_pylist(responses, RESPONSES_SCHEMA),
            pa.Table.from_pylist(rewards, REWARDS_SCHEMA),
            means,
        )


def deal(frozen: Frozen, lab: LabSettings, seed: int) -> dict[str, list[tuple[Prompt, str]]]:
    """Deal the evaluation requests to the parts, anew for every seed: prompts and right answers."""
    rng = random_source(lab, f"gate-laboratory/{seed}")
    requests = requests_for(lab, "evaluation")
    order = rng.permutation(len(requests))
    rows = draw_prompts(rng, lab.lab_task, [requests[i] for i in order])
    sizes = (frozen.num_main, frozen.num_gate, frozen.num_oracle, frozen.num_truth)
    if sum(sizes) > len(rows):
        raise ValueError(f"{sum(sizes)} requests are dealt, there are {len(rows)}")
    dealt: dict[str, list[tuple[Prompt, str]]] = {}
    start = 0
    for name, size in zip(("main", "gate", "oracle", "truth"), sizes, strict=True):
        dealt[name] = [
            (
                Prompt(
                    prompt_id=f"{start + i:04d}",
                    messages=({"role": "user", "content": row["prompt"]},),
                ),
                row["answer"],
            )
            for i, row in enumerate(rows[start : start + size])
        ]
        start += size
    return dealt


def train(frozen: Frozen, seed: int, folder: Path) -> tuple[Path, Path, Path]:
    """Train what is not there yet: the shared initial model, and the seed's own two."""
    lab = frozen.lab_of(seed)
    initial = folder / f"initial-{lab.seed}"
    aligned, reward_model = folder / f"aligned-{seed}", folder / f"reward-model-{seed}"
    if not initial.exists():
        _in_place(initial, lambda out: train_initial(lab, out, on_step=_silent))
    if not aligned.exists():
        variant = f"/{seed}"
        _in_place(
            aligned,
            lambda out: train_aligned(lab, initial, out, on_step=_silent, variant=variant),
        )
    if not reward_model.exists():
        rng = random_source(lab, f"reward-pairs/{seed}")
        requests = requests_for(lab, "reward_model")
        shares = {"damaged_share": lab.damaged_share, "near_share": lab.near_share}
        pairs = [draw_pair(lab, rng, requests, **shares) for _ in range(lab.num_reward_pairs)]
        _in_place(
            reward_model,
            lambda out: train_reward_model(
                lab, "reward_model", out, on_step=_silent, on_policy_pairs=pairs
            ),
        )
    return initial, aligned, reward_model


def _in_place(folder: Path, write: Any) -> None:
    partial = folder.with_name(f".{folder.name}")
    write(partial)
    partial.rename(folder)


def _silent(num_done: int, total: int) -> None:
    pass


def measure(frozen: Frozen, seed: int, folder: Path) -> dict[str, Any]:
    """Return the line of a seed."""
    initial, aligned, reward_model = train(frozen, seed, folder)
    bench = Bench(
        frozen=frozen, seed=seed, initial=initial, aligned=aligned, reward_model=reward_model
    )
    responses, rewards, means = bench.main_tables()
    rules = SelectionSettings()
    guarded = choose_alpha(responses, rewards, settings=rules)
    gated = choose_alpha(
        responses,
        rewards,
        settings=rules.model_copy(update={"no_worse_than": {GATE: frozen.margin}}),
        prompt_sets=bench.gate,
    )
    lost = {
        a: float((bench.right("oracle", 0.0) - bench.right("oracle", a)).mean())
        for a in frozen.alphas
    }
    kept = [alpha for alpha in frozen.alphas if lost[alpha] <= frozen.margin]
    alphas = {
        "reward alone": max(means, key=lambda alpha: means[alpha]),
        "guarded": guarded["best_alpha"],
        "guarded, gate": gated["best_alpha"],
        "oracle": max(kept, key=lambda alpha: means[alpha]),
    }
    truth = {alpha: bench.right("truth", alpha) for alpha in {0.0, *alphas.values()}}
    differing = float((bench.right("gate", 0.0) != bench.right("gate", alphas["guarded"])).mean())
    return {
        "seed": seed,
        "digest": frozen.digest(),
        "aligned_right": float(truth[0.0].mean()),
        "differing": differing,
        "picks": {
            name: {
                "alpha": alpha,
                "reward": means[alpha] - means[0.0],
            }
            for name, alpha in alphas.items()
        },
        # Right sums on prompts that nobody saw.
        "truth": {
            name: truth_gain(truth[alpha].tolist(), truth[0.0].tolist())
            for name, alpha in alphas.items()
        },
        "gates": [
            {key: gate[key] for key in ("alpha", "difference", "ci_low", "ci_high", "verdict")}
            for gate in gated["gates"]
        ],
        "curve": {
            f"{a:g}": {"reward": means[a], "right": float(bench.right("oracle", a).mean())}
            for a in frozen.alphas
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", default="100-119", help="FIRST-LAST (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="JSON lines, one per seed; kept and added to")
    parser.add_argument(
        "--cache", type=Path, default=Path("runs/gate-laboratory"), help="folder of the models"
    )
    parser.add_argument("--summarize", type=Path, help="print the page of recorded lines")
    parser.add_argument("--write", action="store_true", help=f"write it to {RESULT.name}")
    given = parser.parse_args()
    first, last = map(int, given.seeds.split("-"))
    seeds = range(first, last + 1)
    if given.summarize:
        text = render(read_lines(given.summarize, FROZEN), FROZEN, len(seeds))
        print(text)
        if given.write:
            RESULT.write_text(text, encoding="utf-8")
        return
    if given.output is None:
        parser.error("one of --output and --summarize is needed")
    torch.set_num_threads(1)
    run_seeds(FROZEN, seeds, output=given.output, cache=given.cache)


def read_lines(path: Path, frozen: Frozen) -> list[dict[str, Any]]:
    """Return recorded lines; those of other settings are refused."""
    if not path.exists():
        return []
    lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    if {line["digest"] for line in lines} - {frozen.digest()}:
        raise SystemExit(f"{path}: lines of other settings than {frozen.digest()}")
    return lines


def run_seeds(frozen: Frozen, seeds: Sequence[int], *, output: Path, cache: Path) -> None:
    """Measure what is missing, a line each."""
    lines = read_lines(output, frozen)
    done = {line["seed"] for line in lines}
    folder = cache / frozen.digest()
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        if seed not in done:
            lines.append(measure(frozen, seed, folder))
            atomic_write_text(output, "".join(json.dumps(line) + "\n" for line in lines))
            print(json.dumps(lines[-1]), flush=True)


if __name__ == "__main__":
    main()
