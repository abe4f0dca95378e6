"""What a study found, in numbers: `study.json`, from which the report is drawn.

Alpha is chosen on one half of the prompts by the truth itself, and what it brings is measured on
the other half, and the other way round, so that every prompt counts and choosing does not flatter.
Differences are paired by prompt. Two intervals are told: over prompts, which holds for the very
models of these seeds, and over seeds, which needs three of them and holds for another training too.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from expo_ray.extrapolation import format_alpha
from expo_ray.lab.studies.curves import read_curve
from expo_ray.lab.studies.running import Cell
from expo_ray.lab.studies.study import Arm, Study, StudySettings
from expo_ray.selection.bootstrap import bootstrap_mean

SCHEMA_VERSION = 1
CONFIDENCE = 0.95
NUM_RESAMPLES = 2000
MIN_SEEDS = 3
"""Fewer have no interval over seeds."""

FloatArray = npt.NDArray[np.float64]


def summarize(study: Study, settings: StudySettings, cells: Sequence[Cell]) -> dict[str, Any]:
    """Return the content of `study.json`.

    Args:
        study: Which study.
        settings: Those of the run.
        cells: Its measured cells.
    """
    measured = {
        arm.name: [_Pair(study, cell) for cell in cells if cell.arm.name == arm.name]
        for arm in study.arms
    }
    yardstick = measured[study.yardstick or study.arms[0].name]
    arms = [_arm(arm, measured[arm.name], yardstick) for arm in study.arms]
    return {
        "schema_version": SCHEMA_VERSION,
        "name": study.name,
        "title": study.title,
        "question": study.question,
        "published": study.published,
        "limits": study.limits,
        "yardstick": study.yardstick or study.arms[0].name,
        "settings": settings.model_dump(mode="json", exclude={"cache", "mergekit"}),
        "num_prompts": len(yardstick[0].plain),
        "confidence": CONFIDENCE,
        "arms": arms,
        "warned": _warned(study.arms, measured),
        "shows": shows(arms, len(settings.seeds)),
    }


class _Pair:
    """The measurements of one cell."""

    def __init__(self, study: Study, cell: Cell) -> None:
        self.seed = cell.seed
        self.diagnosis, points = read_curve(cell.curve, study.alphas)
        self.truth: dict[float, FloatArray] = {
            point["alpha"]: np.array(point["truth"], float) for point in points
        }
        self.tokens = {point["alpha"]: float(np.mean(point["tokens"])) for point in points}
        self.cut_off = {
            point["alpha"]: point["num_cut_off"] / len(point["truth"]) for point in points
        }
        self.plain = self.truth[0.0]
        self.best = tuple(self._choose(slice(half, None, 2)) for half in (0, 1))

    def _choose(self, half: slice) -> float:
        """Return the alpha with the highest truth on one half; of equal ones the smallest step.

        Never one below 0: a step back towards the initial model is no extrapolation.
        """
        means = {
            alpha: float(truth[half].mean()) for alpha, truth in self.truth.items() if alpha >= 0
        }
        return min(means, key=lambda alpha: (-means[alpha], alpha))

    @property
    def after(self) -> FloatArray:
        """The truth of every prompt at the alpha that the other half chose."""
        after = np.empty_like(self.plain)
        for half, alpha in enumerate(reversed(self.best)):
            after[half::2] = self.truth[alpha][half::2]
        return after

    def is_warned(self) -> bool:
        """Whether `diagnose` had anything against the pair."""
        return bool(self.diagnosis["warnings"])


def _arm(arm: Arm, pairs: Sequence[_Pair], yardstick: Sequence[_Pair]) -> dict[str, Any]:
    curve = [_point(alpha, pairs) for alpha in sorted(pairs[0].truth)]
    gains = [pair.after - pair.plain for pair in pairs]
    ahead = [pair.after - other.plain for pair, other in zip(pairs, yardstick, strict=True)]
    best_alphas = [alpha for pair in pairs for alpha in pair.best]
    return {
        "name": arm.name,
        "published": arm.published,
        "is_alignment_step": arm.is_alignment_step,
        "relative_delta": _mean(pair.diagnosis["relative_delta"] for pair in pairs),
        "best_alphas": best_alphas,
        "before": _mean(pair.plain.mean() for pair in pairs),
        "after": _mean(pair.after.mean() for pair in pairs),
        "gain": estimate(gains),
        "over_yardstick": estimate(ahead),
        "tokens_before": _mean(pair.tokens[0.0] for pair in pairs),
        "tokens_after": _mean(pair.tokens[alpha] for pair in pairs for alpha in pair.best),
        "worse_from": _worse_from(curve),
        "curve": curve,
        "seeds": [
            {
                "seed": pair.seed,
                "best_alphas": list(pair.best),
                "gain": float(gain.mean()),
                "fit": pair.diagnosis["fit"],
                "warnings": pair.diagnosis["warnings"],
            }
            for pair, gain in zip(pairs, gains, strict=True)
        ],
    }


def _point(alpha: float, pairs: Sequence[_Pair]) -> dict[str, Any]:
    gains = [pair.truth[alpha] - pair.plain for pair in pairs]
    return {
        "alpha": alpha,
        "mean": _mean(pair.truth[alpha].mean() for pair in pairs),
        "gain": estimate(gains),
        "tokens": _mean(pair.tokens[alpha] for pair in pairs),
        "cut_off": _mean(pair.cut_off[alpha] for pair in pairs),
    }


def estimate(differences: Sequence[FloatArray]) -> dict[str, Any]:
    """Return the mean over seeds of paired differences with its two intervals.

    Args:
        differences: Of each seed one per prompt; the seeds have prompts of their own.

    Returns:
        `mean`; `ci_low` and `ci_high` over prompts, the seeds as they are; `seeds_ci_low` and
        `seeds_ci_high` over seeds, None below three of them.
    """
    means = np.array([values.mean() for values in differences])
    # Each seed's own mean is taken out: what is left is the noise of prompts.
    centred = np.concatenate([v - v.mean() for v in differences]) + means.mean()
    over_prompts = bootstrap_mean(centred, num_resamples=NUM_RESAMPLES, seed=0)
    low, high = over_prompts.interval(CONFIDENCE)
    seeds_low, seeds_high = None, None
    if len(means) >= MIN_SEEDS:
        over_seeds = bootstrap_mean(means, num_resamples=NUM_RESAMPLES, seed=0)
        seeds_low, seeds_high = over_seeds.interval(CONFIDENCE)
    return {
        "mean": float(means.mean()),
        "ci_low": low,
        "ci_high": high,
        "seeds_ci_low": seeds_low,
        "seeds_ci_high": seeds_high,
    }


def bounds(found: Mapping[str, Any]) -> tuple[float, float]:
    """Return the stricter interval that there is: over seeds, else over prompts."""
    if found["seeds_ci_low"] is not None:
        return found["seeds_ci_low"], found["seeds_ci_high"]
    return found["ci_low"], found["ci_high"]


def _worse_from(curve: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the alpha from which on the truth is below that of aligned, in these models."""
    found = None
    for point in reversed(curve):
        if point["alpha"] <= 0 or point["gain"]["ci_high"] >= 0:
            break
        found = point["alpha"]
    return found


def _warned(
    arms: Sequence[Arm], measured: Mapping[str, Sequence[_Pair]]
) -> dict[str, dict[str, int]]:
    """Count pairs, and those that `diagnose` warned of, by what they are."""
    counts = {}
    for name, wanted in (("alignment_steps", True), ("others", False)):
        pairs = [p for arm in arms if arm.is_alignment_step == wanted for p in measured[arm.name]]
        counts[name] = {
            "num_pairs": len(pairs),
            "num_warned": sum(pair.is_warned() for pair in pairs),
            "num_unfit": sum(not pair.diagnosis["fit"] for pair in pairs),
        }
    return counts


def shows(arms: Sequence[Mapping[str, Any]], num_seeds: int) -> str:
    """Return in one sentence what the numbers say."""
    gained = [arm for arm in arms if bounds(arm["gain"])[0] > 0]
    rest = [arm["name"] for arm in arms if arm not in gained]
    over = "over seeds" if num_seeds >= MIN_SEEDS else "these very models, over prompts alone"
    if gained:
        names = ", ".join(
            f"{arm['name']} (alpha {alpha_range(arm['best_alphas'])}, {arm['gain']['mean']:+.2f})"
            for arm in gained
        )
        text = f"Extrapolation raised the truth in {names}"
        text += f", and in {', '.join(rest)} not for certain" if rest else ""
    else:
        text = "In no setting did extrapolation raise the truth for certain"
    before = max(arms, key=lambda arm: arm["before"])
    after = max(arms, key=lambda arm: arm["after"])
    return (
        f"{text} ({over}); the best model before it was {before['name']} "
        f"({before['before']:.2f}), after it {after['name']} ({after['after']:.2f})."
    )


def alpha_range(alphas: Sequence[float]) -> str:
    """Return the alphas that were chosen, from the smallest to the largest."""
    low, high = min(alphas), max(alphas)
    if low == high:
        return format_alpha(low)
    return f"{format_alpha(low)} to {format_alpha(high)}"


def _mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))
