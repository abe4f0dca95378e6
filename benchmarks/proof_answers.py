"""What the models of one case of the selection's proof answered, kept, and what is chosen from it.

The choice needs no model: from kept answers other rules choose anew in seconds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from benchmarks.replayed_race import ReplayedRace, share_of_all
from expo_ray.checkpoints import atomic_write_json
from expo_ray.selection import SelectionSettings, choose_alpha
from expo_ray.selection.bootstrap import bootstrap_mean
from expo_ray.tables.seeds import shuffled

if TYPE_CHECKING:
    from benchmarks.proof_case import Case, Frozen

SCORER, GUARD = "reward-model", "guard-reward-model"


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """Answers of all candidates to the selection's prompts, rewards and, of runs, the truth."""

    responses: pa.Table
    rewards: Mapping[str, pa.Table]
    curves: Mapping[float, Mapping[str, float]]
    truths: Mapping[float, Sequence[float]]
    """Of each request of the part that measures it, by alpha; those that were measured."""
    race_seed: int

    def write(self, folder: Path, *, facts: Mapping[str, Any]) -> None:
        """Write them to a folder, `case.json` last."""
        folder.mkdir(parents=True, exist_ok=True)
        pq.write_table(self.responses, folder / "responses.parquet")
        for name, table in self.rewards.items():
            pq.write_table(table, folder / f"{name}.parquet")
        record = {
            "facts": dict(facts),
            "curves": {f"{alpha:g}": dict(values) for alpha, values in self.curves.items()},
            "truths": {f"{alpha:g}": list(values) for alpha, values in self.truths.items()},
            "race_seed": self.race_seed,
        }
        atomic_write_json(folder / "case.json", record)


def read_answers(folder: Path) -> tuple[dict[str, Any], Answers]:
    """Return what `Answers.write` left: the facts of the case and its answers."""
    record = json.loads((folder / "case.json").read_text(encoding="utf-8"))

    def by_alpha(found: Mapping[str, Any]) -> dict[float, Any]:
        return {float(alpha): values for alpha, values in found.items()}

    answers = Answers(
        responses=pq.read_table(folder / "responses.parquet"),
        rewards={name: pq.read_table(folder / f"{name}.parquet") for name in (SCORER, GUARD)},
        curves=by_alpha(record["curves"]),
        truths=by_alpha(record["truths"]),
        race_seed=record["race_seed"],
    )
    return record["facts"], answers


def line_of(
    answers: Answers,
    case: Case,
    frozen: Frozen,
    truth_of: Callable[[float], Sequence[float] | None],
) -> dict[str, Any]:
    """Return what is chosen from answers, and the truth of it.

    Args:
        answers: Of the case.
        case: A run, or a control, of which the truth is asked only where it is not kept.
        frozen: The settings.
        truth_of: Returns the truth under an alpha; None where nobody measured it.
    """
    line = _choose(answers, frozen.selection)
    picked = {"chosen": line["chosen"]}
    if case.kind == "run":
        curves = answers.curves
        picked |= {
            "by_reward": line["by_reward"],
            "oracle": max(curves, key=lambda a: curves[a]["oracle_truth"]),
            "reward_only": max(curves, key=lambda a: curves[a][SCORER]),
        }
    elif line["chosen"] == 0:
        return line
    aligned = truth_of(0.0)
    truth = {name: truth_gain(truth_of(alpha), aligned) for name, alpha in picked.items()}
    return {**line, **picked, "truth": truth}


def _choose(answers: Answers, settings: SelectionSettings) -> dict[str, Any]:
    by_reward_settings = settings.model_copy(update={"rank_by": "reward"})
    selection, by_reward = (
        choose_alpha(
            answers.responses,
            answers.rewards[SCORER],
            settings=rules,
            guard_rewards={GUARD: answers.rewards[GUARD]},
        )
        for rules in (settings, by_reward_settings)
    )
    return {
        "chosen": selection["best_alpha"],
        "by_reward": by_reward["best_alpha"],
        "verdict": selection["verdict"],
        "tried": selection["tried_alpha"],
        "sequence": [[one["alpha"], one["outcome"]] for one in selection["heldout_sequence"]],
        "reason": selection["reason"],
        "race": _race(answers, by_reward_settings),
        "curves": {f"{alpha:g}": dict(values) for alpha, values in answers.curves.items()},
    }


def _race(answers: Answers, settings: SelectionSettings) -> dict[str, Any]:
    """Say what racing would have chosen, and for how many of the answers.

    All answers are there; the race is shown those alone that it asks for. To be compared with
    the full grid under the same order of candidates, `by_reward`.
    """
    asked = answers.responses.filter(pc.equal(answers.responses["alpha"], 0.0))
    ids = zip(asked["prompt_id"].to_pylist(), asked["split"].to_pylist(), strict=True)
    splits = dict(ids)
    tuning = [i for i, split in splits.items() if split == "tuning"]
    heldout = splits.keys() - set(tuning)
    race = ReplayedRace(
        responses=answers.responses,
        rewards=answers.rewards[SCORER],
        guard_rewards={GUARD: answers.rewards[GUARD]},
        tuning=shuffled(tuning, seed=answers.race_seed, purpose="race"),
        settings=settings.model_copy(update={"strategy": "racing"}),
    )
    found = race.search(sorted(answers.curves))
    selection = race.choose(found.num_answered, heldout=heldout, search=found)
    return {
        "chosen": selection["best_alpha"],
        "share": share_of_all(found, len(selection["heldout_sequence"]), len(heldout)),
        "tuning_share": found.share,
    }


def truth_gain(truth: Sequence[float] | None, base: Sequence[float] | None) -> dict[str, Any]:
    """Return the paired gain over alpha 0 with its 95% interval and two-sided p-value."""
    if truth is None or base is None:
        return dict.fromkeys(("gain", "ci_low", "ci_high", "p_value"))
    differences = np.subtract(truth, base)
    estimate = bootstrap_mean(differences, num_resamples=10_000, seed=0)
    low, high = estimate.interval(0.95)
    return {"gain": estimate.mean, "ci_low": low, "ci_high": high, "p_value": estimate.p_value()}
