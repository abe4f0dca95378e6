"""Gates: what a candidate must not lose, however much its reward gains.

A gate is a non-inferiority test on held-out prompts. A candidate passes only if the whole interval
of its paired difference to the aligned model lies above minus the margin; it is worse where the
interval lies below, and in between so many prompts cannot tell. That is an answer of its own, but
no permission: the candidate is not chosen, and the number of prompts that could have told is said.

Right and wrong answers are compared by Tango's test, other scores of 0 to 1 (shares of several
answers) by a score test that reckons with rare whole failures, and unbounded scores by Student's,
which says nothing where they do not scatter (benchmarks/results/gate_proof.md).

Several candidates may have their turn, and each is one more chance to pass wrongly. The first is
asked at the full confidence; all the later ones share as much error again (`gate_confidence`), so
that some candidate that loses the margin passes in at most twice the error of one side: 5% at 95%.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

import numpy as np

from expo_ray.extrapolation.planning.alpha import ALIGNED_ALPHA
from expo_ray.selection.bootstrap import FloatArray
from expo_ray.selection.guard_comparisons import (
    Comparison,
    compare_bounded,
    compare_mean,
    compare_shares,
)
from expo_ray.selection.guard_findings import Guard, Question, judge
from expo_ray.selection.sample_size import prompts_for_margin, prompts_for_shares
from expo_ray.selection.samples import SplitSamples
from expo_ray.selection.settings import SelectionSettings

MAIN = "main"
"""The set of prompts that chooses alpha and confirms it."""
GATE_PREFIX = "no-worse-than "
"""What the guard's name begins with that a gate becomes where it stops a candidate."""
POWER = 0.8
Verdict = Literal["no-worse", "worse", "cannot-tell"]
Kind = Literal["right-or-wrong", "shares", "scores"]
_VERDICTS: dict[str, Verdict] = {
    "clear": "no-worse", "fired": "worse", "cannot-tell": "cannot-tell",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Scores:
    """What the aligned model and a candidate reached on the same held-out prompts."""

    name: str
    """Of the gate: a set of prompts, or a reward model on the main ones."""
    prompts: str
    """Name of the set; `MAIN` for the prompts that choose."""
    reward_model: str
    """Folder name of what scored."""
    aligned: FloatArray
    """One score per prompt; not-a-number where there is none."""
    candidate: FloatArray
    unreadable: tuple[int, int] | None = None
    """Wrong answers that a check could not read, of both; None where nobody counted."""


MeasureSets = Callable[[float], Sequence[Scores]]
"""Returns what a candidate reached on each further set of prompts, which it answers if need be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Gate:
    """What a gate says of one candidate, or what is only reported of it."""

    name: str
    prompts: str
    reward_model: str
    alpha: float
    margin: float | None
    """What may be lost; None where nothing is asked."""
    confidence: float
    """Of the interval, two-sided; above that of the settings for later candidates."""
    aligned: float | None
    candidate: float | None
    difference: float | None
    ci_low: float | None
    ci_high: float | None
    num_prompts: int
    """Scored on both sides."""
    num_missing: int
    aligned_unreadable: int | None
    """Wrong answers of the aligned model that its check could not read; None where nobody counted:
    of the main prompts, which `unreadable` of selection.json tells of."""
    candidate_unreadable: int | None
    num_needed: int | None
    """Prompts that would tell an equal model from one that loses the margin, by what was seen."""
    verdict: Verdict | None
    """`no-worse`, `worse` or `cannot-tell`; None without a margin."""
    reason: str

    def as_dict(self) -> dict[str, object]:
        """Return the entry of selection.json."""
        return asdict(self)


def main_scores(heldout: SplitSamples, alpha: float, settings: SelectionSettings) -> list[Scores]:
    """Return what gates on the main prompts ask for: one of each reward model that has a margin.

    And one of each that is only reported.
    """
    return [
        Scores(
            name=model,
            prompts=MAIN,
            reward_model=model,
            aligned=heldout.prompt_means(rewards[heldout.row(ALIGNED_ALPHA)]),
            candidate=heldout.prompt_means(rewards[heldout.row(alpha)]),
        )
        for model, rewards in sorted(heldout.guard_rewards.items())
        if model in settings.no_worse_than or model in settings.report_only
    ]


def gate_confidence(place: int, num_candidates: int, confidence: float) -> float:
    """Return the confidence at which one of several candidates in a fixed order is asked.

    A dropped candidate that is recalled and then has no turn leaves the order, and the others are
    asked anew, less strictly; never less so than the order that the tuning prompts make in the end.

    Args:
        place: Of the candidate, from 0.
        num_candidates: Of the order, whether or not they will have their turn; those among them
            that a race has dropped and may recall.
        confidence: Of the settings, two-sided.
    """
    return confidence if place == 0 else 1 - (1 - confidence) / (num_candidates - 1)


def check_gate(
    scores: Scores, alpha: float, settings: SelectionSettings
) -> tuple[Gate, Guard | None]:
    """Ask one gate about one candidate.

    Args:
        scores: On held-out prompts.
        alpha: The candidate.
        settings: Margins, confidence, and how many scores may be missing.

    Returns:
        The finding, and what it means for the choice: a guard, None where nothing is asked.
    """
    margin = settings.no_worse_than.get(scores.name)
    both = np.isfinite(scores.aligned) & np.isfinite(scores.candidate)
    num_missing = int((~both).sum())
    kind = _kind([scores.aligned[both], scores.candidate[both]], margin)
    if kind != "scores":
        # A candidate's answer without a score is as bad as a wrong one, not left out.
        both |= np.isfinite(scores.aligned)
    aligned, candidate = scores.aligned[both], np.nan_to_num(scores.candidate[both], nan=0.0)
    found: Comparison | None = None
    if aligned.size >= settings.min_pairs:
        found = _compare(kind, candidate - aligned, -(margin or 0.0), settings.confidence)
    guard, needed = None, None
    if margin is not None:
        # Answers do not fail at random: what is left would flatter the candidate.
        judged = None if num_missing > settings.max_error_rate * both.size else found
        needed = _needed(candidate - aligned, margin, settings, kind)
        guard = _guard(scores, alpha, margin, judged, settings)
        reason = _reason(guard, int(aligned.size), num_missing, needed)
        # Known before the run of most checks, and refused; of a user's function it shows here.
        if margin >= 1 and aligned.size and _are_shares(aligned) and _are_shares(candidate):
            reason += (
                f"; all scores lie between 0 and 1, so that a margin of {margin:g} asks nothing"
            )
        guard = replace(guard, reason=reason)
    return Gate(
        name=scores.name,
        prompts=scores.prompts,
        reward_model=scores.reward_model,
        alpha=alpha,
        margin=margin,
        confidence=settings.confidence,
        aligned=_mean(aligned),
        candidate=_mean(candidate),
        difference=None if found is None else found.value,
        ci_low=None if found is None else found.ci_low,
        ci_high=None if found is None else found.ci_high,
        num_prompts=int(aligned.size),
        num_missing=num_missing,
        aligned_unreadable=None if scores.unreadable is None else scores.unreadable[0],
        candidate_unreadable=None if scores.unreadable is None else scores.unreadable[1],
        num_needed=needed,
        verdict=None if guard is None else _VERDICTS[guard.state],
        reason="reported only" if guard is None else guard.reason,
    ), guard


def _kind(scores: Sequence[FloatArray], margin: float | None) -> Kind:
    if (margin or 0.0) < 1:
        if np.isin(scores, (0.0, 1.0)).all():
            return "right-or-wrong"
        if all(map(_are_shares, scores)):
            return "shares"
    return "scores"


def _are_shares(scores: FloatArray) -> bool:
    return bool(((scores >= 0) & (scores <= 1)).all())


def _compare(kind: Kind, differences: FloatArray, limit: float, confidence: float) -> Comparison:
    if kind == "right-or-wrong":
        return compare_shares(differences, limit, confidence)
    if kind == "shares":
        return compare_bounded(differences, limit, confidence)
    found = compare_mean(differences, limit, confidence)
    if found.ci_low == found.ci_high:
        # Nothing scatters, so nothing says how far a prompt that was not asked may lie off.
        return replace(found, ci_low=None, ci_high=None, p_value=1.0)
    return found


def _guard(
    scores: Scores,
    alpha: float,
    margin: float,
    found: Comparison | None,
    settings: SelectionSettings,
) -> Guard:
    question = Question(
        name=f"{GATE_PREFIX}{scores.name}", limit=-margin, doubt="stop", at_most=False
    )
    words = "" if found is None else f"{scores.name} changes by {found.value:+.4g}"
    return judge(
        question, found, words, alpha=alpha, split="heldout", confidence=settings.confidence
    )


def _needed(
    differences: FloatArray, margin: float, settings: SelectionSettings, kind: Kind
) -> int | None:
    if differences.size < 2:
        return None
    asked = {"power": POWER, "confidence": settings.confidence}
    square = float((differences**2).mean())
    if kind == "shares":
        return prompts_for_shares(square, margin, **asked)
    if kind == "right-or-wrong":
        return prompts_for_margin(square, margin, proportions=True, **asked)
    variance = float(differences.var(ddof=1))
    if not variance:
        return None
    return prompts_for_margin(variance, margin, proportions=False, **asked)


def _reason(guard: Guard, num_prompts: int, num_missing: int, needed: int | None) -> str:
    if guard.value is None:
        return (
            f"{guard.name} cannot be told: {num_prompts} prompts are scored on both sides, "
            f"{num_missing} are not"
        )
    if guard.state == "cannot-tell" and needed is None:
        return f"{guard.reason}; scores that do not scatter cannot be told from rare failures"
    if guard.state == "cannot-tell" and needed is not None and needed <= num_prompts:
        return (
            f"{guard.reason}; from {num_prompts} prompts it cannot be told, although they would "
            f"show with {POWER:.0%} power that an equal model keeps the margin: this one may lose "
            "something, and more prompts say how much"
        )
    if guard.state == "cannot-tell":
        return (
            f"{guard.reason}; from {num_prompts} prompts it cannot be told, about {needed:,} would "
            f"show with {POWER:.0%} power that an equal model keeps the margin"
        )
    return guard.reason


def _mean(values: FloatArray) -> float | None:
    return float(values.mean()) if values.size else None
