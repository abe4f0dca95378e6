"""Asks on a real language model what extrapolation gains, where the truth of an answer is known.

    python -m benchmarks.language_study --output results.jsonl
    python -m benchmarks.language_study --summarize results.jsonl [--write]

Per seed and share of the preference data a pair is trained (`expo-ray lab language`). It answers
held-out prompts at every alpha under the same noise: half of them are the selection's, which sees
the rewards of two reward models; on the other half the truth of what was picked is measured. There
an oracle picks by the truth, on either half of that half for the other. Prompts whose constraints
are of kinds that nobody trained for tell what else changes. Asked is:

    1. does extrapolation gain, and up to which alpha?
    2. does less training allow more of it?
    3. does the alpha of the highest mean reward overshoot?
    4. does the guarded selection recover 70% of the oracle's gain, and is it never significantly
       below the aligned model?
    5. what becomes of what was not trained for?

Every answer and every finished case stays: a rerun does what is missing.

Needs: two CPU cores, the extra language, vLLM. Takes: hours; every finished case is kept.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.language_summary import render
from expo_ray.checkpoints import atomic_write_text
from expo_ray.cluster import ray_session
from expo_ray.extrapolation import diagnose
from expo_ray.json_text import parse_json
from expo_ray.lab.language.pairs import open_check
from expo_ray.lab.language.prepare import CONTEXT_TOKENS, language_engine, prepare_language
from expo_ray.lab.language.result import LanguageResult
from expo_ray.lab.language.settings import CODE_VERSION, LanguageSettings
from expo_ray.progress import NullProgress
from expo_ray.rewards.checks.kind import Checked
from expo_ray.selection import SelectionSettings, choose_alpha
from expo_ray.selection.repetition import repeated_share
from expo_ray.serving.engines.options import EngineOptions
from expo_ray.serving.generator_replicas import GeneratorReplicas
from expo_ray.serving.reward_replicas import RewardReplicas
from expo_ray.serving.sampling import SamplingParams
from expo_ray.serving.source import ModelSource
from expo_ray.tables import Prompt, assign_splits, read_prompts, read_table

RESULT = Path(__file__).resolve().parent / "results" / "language_study.md"
REPEATED = 0.2
"""A response repeats itself from this share of its sequences on."""
# Prompts of untrained kinds per prompt of trained ones: they only show a direction.
_OTHER_SHARE = 0.5
# Logical: replicas of generator and reward models wait for each other, not for a core.
_NUM_CPUS = 6


@dataclass(frozen=True, kw_only=True)
class Case:
    """One pair."""

    seed: int
    fraction: float
    alphas: tuple[float, ...]
    num_prompts: int
    lab: LanguageSettings

    @property
    def key(self) -> str:
        """Name of the case in the results."""
        return f"seed={self.seed} fraction={self.fraction:g}"

    def lab_settings(self, fractions: tuple[float, ...]) -> LanguageSettings:
        """Return the settings of its laboratory, of all shares of this seed."""
        return self.lab.model_copy(update={"seed": self.seed, "fractions": fractions})

    def settings(self) -> dict[str, Any]:
        """Return what all cases of a study share."""
        return {
            "lab": self.lab.model_dump(mode="json", exclude={"seed", "fractions"}),
            "alphas": list(self.alphas),
            "num_prompts": self.num_prompts,
            "code_version": CODE_VERSION,
        }

    def digest(self) -> str:
        """Return what tells recorded lines of other settings apart."""
        text = json.dumps(self.settings(), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=(0, 1, 2))
    parser.add_argument("--fractions", type=float, nargs="+", default=(0.05, 0.1, 0.2, 0.4, 1.0))
    parser.add_argument(
        "--alphas",
        type=float,
        nargs="+",
        default=(0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0),
        help="candidates, 0 among them (default: %(default)s)",
    )
    parser.add_argument("--prompts", type=int, default=300, help="held-out prompts per case")
    parser.add_argument("--preference-prompts", type=int, default=480, help="all data there is")
    parser.add_argument("--reward-prompts", type=int, default=480, help="of each reward model")
    parser.add_argument("--output", type=Path, help="JSON lines, one per case; kept and added to")
    parser.add_argument("--cache", type=Path, default=Path("runs/language"), help="laboratories")
    parser.add_argument("--summarize", type=Path, help="print the tables of recorded lines")
    parser.add_argument("--write", action="store_true", help=f"to benchmarks/results/{RESULT.name}")
    arguments = parser.parse_args()
    if arguments.summarize:
        text = render(_read_lines(arguments.summarize))
        print(text)
        if arguments.write:
            RESULT.write_text(text, encoding="utf-8")
        return
    if arguments.output is None:
        parser.error("one of --output and --summarize is needed")
    if 0.0 not in arguments.alphas:
        parser.error("0 must be among the alphas: every gain is over the aligned model")
    lab = LanguageSettings(
        num_preference_prompts=arguments.preference_prompts,
        num_reward_prompts=arguments.reward_prompts,
        num_eval_prompts=arguments.prompts,
    )
    cases = [
        Case(
            seed=seed,
            fraction=fraction,
            alphas=tuple(sorted({*arguments.alphas})),
            num_prompts=arguments.prompts,
            lab=lab,
        )
        for seed, fraction in product(arguments.seeds, arguments.fractions)
    ]
    run_cases(cases, output=arguments.output, cache=arguments.cache)


def run_cases(cases: Sequence[Case], *, output: Path, cache: Path) -> None:
    """Measure what is missing, a line each."""
    lines = _read_lines(output)
    if others := {line["digest"] for line in lines} - {case.digest() for case in cases}:
        raise SystemExit(f"{output}: lines of other settings ({', '.join(sorted(others))})")
    done = {line["key"] for line in lines}
    with ray_session("local", num_cpus=_NUM_CPUS):
        for case in cases:
            if case.key in done:
                continue
            of_seed = tuple(each.fraction for each in cases if each.seed == case.seed)
            lab = prepare_language(cache, case.lab_settings(of_seed))
            lines.append(measure(case, lab))
            atomic_write_text(output, "".join(json.dumps(line) + "\n" for line in lines))
            print(f"{case.key}: alpha {lines[-1]['picks']['chosen']:g}", flush=True)


def measure(case: Case, lab: LanguageResult) -> dict[str, Any]:
    """Return the line of a case: what is computed from it is `language_summary`'s."""
    folder = lab.folder / f"study-{case.fraction:g}"
    prompts = read_prompts(lab.prompts)
    others = read_prompts(lab.other_prompts)[: round(_OTHER_SHARE * len(prompts))]
    ids, other_ids = ([prompt.prompt_id for prompt in each] for each in (prompts, others))
    selected = ids[: len(ids) // 2]  # they are in random order
    responses = answer(case, lab, folder, prompts, others, selected)
    rewards = score(lab, folder, responses, selected)
    curves: list[dict[str, Any]] = [
        {
            "alpha": alpha,
            "truths": truth_of(responses, alpha, ids),
            "other_truths": truth_of(responses, alpha, other_ids),
            **{name: _mean_reward(table, alpha) for name, table in rewards.items()},
            **form_of(responses, alpha, ids),
        }
        for alpha in case.alphas
    ]
    selection = choose_alpha(
        _answers_to(responses, selected),
        rewards["scorer"],
        settings=SelectionSettings(rank_by="all-judges"),
        guard_rewards={"guard": rewards["guard"]},
    )
    aligned = lab.aligned[case.fraction]
    return {
        "key": case.key,
        "digest": case.digest(),
        "seed": case.seed,
        "fraction": case.fraction,
        "settings": case.settings(),
        "models": _facts(lab, aligned),
        "fit": diagnose(str(lab.initial), str(aligned), address="inline").fit,
        "num_selected": len(selected),
        "curves": curves,
        "picks": {
            "chosen": selection["best_alpha"],
            "reward_alone": max(curves, key=lambda curve: curve["scorer"])["alpha"],
        },
        "verdict": selection["verdict"],
        "reason": selection["reason"],
    }


def _facts(lab: LanguageResult, aligned: Path) -> dict[str, Any]:
    models = parse_json(lab.record.read_text(encoding="utf-8"))["models"]
    names = {"aligned": aligned, "scorer": lab.reward_model, "guard": lab.guard_reward_model}
    return {name: models[path.name] for name, path in names.items()}


def answer(
    case: Case,
    lab: LanguageResult,
    folder: Path,
    prompts: Sequence[Prompt],
    others: Sequence[Prompt],
    selected: Sequence[str],
) -> pa.Table:
    """Return the answers at every alpha, of one engine whose weights are replaced in place."""
    sampling = SamplingParams(max_tokens=case.lab.max_tokens, seed=case.seed)
    aligned = str(lab.aligned[case.fraction])
    splits = assign_splits(selected, heldout_fraction=0.5, seed=case.seed)
    options = EngineOptions(max_model_len=CONTEXT_TOKENS)
    tables = []
    with GeneratorReplicas(1, language_engine("auto"), options=options) as replicas:
        for alpha in case.alphas:
            source = ModelSource(model=aligned)
            if alpha != 0:
                source = ModelSource(model=aligned, initial=str(lab.initial), alpha=alpha)
            path = folder / f"alpha-{alpha:g}.parquet"
            replicas.write_responses(
                source,
                [*prompts, *others],
                path,
                sampling=sampling,
                splits=dict(splits),
                alpha=alpha,
                progress=NullProgress(),
            )
            tables.append(read_table(path))
    return pa.concat_tables(tables)


def score(
    lab: LanguageResult, folder: Path, responses: pa.Table, selected: Sequence[str]
) -> dict[str, pa.Table]:
    """Return what both reward models say of the answers to the selection's prompts."""
    path = folder / "selection.parquet"
    pq.write_table(_answers_to(responses, selected), path)
    rewards = {}
    for name, model in {"scorer": lab.reward_model, "guard": lab.guard_reward_model}.items():
        output = folder / f"{name}.parquet"
        with RewardReplicas(str(model), self_test=False) as replicas:
            replicas.write_rewards(path, output)
        rewards[name] = read_table(output)
    return rewards


def truth_of(responses: pa.Table, alpha: float, ids: Sequence[str]) -> list[float]:
    """Return the share of constraints that the answer to each prompt keeps to."""
    check = open_check()
    kept = {
        row["prompt_id"]: check.reward(
            Checked(
                messages=row["messages"],
                response=row["response"] or "",
                columns={"constraints": row["constraints"]},
            )
        )
        for row in _at(responses, alpha).to_pylist()
    }
    return [kept[prompt_id] for prompt_id in ids]


def form_of(responses: pa.Table, alpha: float, ids: Sequence[str]) -> dict[str, list[float]]:
    """Return per prompt what no preference was about: length, answers cut off, repetition."""
    by_id = {row["prompt_id"]: row for row in _at(responses, alpha).to_pylist()}
    rows = [by_id[prompt_id] for prompt_id in ids]
    return {
        "tokens": [row["completion_tokens"] or 0 for row in rows],
        "cut_off": [float(row["finish_reason"] == "length") for row in rows],
        "repeated": [float(repeated_share(row["response"] or "") >= REPEATED) for row in rows],
    }


def _at(responses: pa.Table, alpha: float) -> pa.Table:
    return responses.filter(pc.equal(responses["alpha"], alpha))


def _answers_to(responses: pa.Table, ids: Sequence[str]) -> pa.Table:
    return responses.filter(pc.is_in(responses["prompt_id"], pa.array(ids, pa.string())))


def _mean_reward(rewards: pa.Table, alpha: float) -> float:
    return float(pc.mean(_at(rewards, alpha)["reward"]).as_py())


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]


if __name__ == "__main__":
    main()
