"""What a guard found, and what becomes of it: fired, clear, or not to be told from these prompts.

fired         beyond the threshold with confidence
clear         within it with confidence
cannot-tell   the interval holds the threshold; the doubt's rule says what this does
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Literal

from expo_ray.selection.guard_comparisons import Comparison
from expo_ray.selection.guard_settings import Doubt

State = Literal["fired", "clear", "cannot-tell"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Guard:
    """One guard's finding on one candidate."""

    name: str
    alpha: float
    split: str
    value: float | None
    """None where it could not be measured."""
    ci_low: float | None
    """Of the paired difference to the aligned model, laid upon the latter's value."""
    ci_high: float | None
    p_value: float
    """Two-sided, of the truth lying at the threshold."""
    threshold: float
    num_prompts: int
    state: State
    fired: bool
    """Whether it stops the candidate: the state is `fired`, or a doubt counts against it."""
    is_beyond: bool
    """Whether the value lies beyond the threshold, with confidence or without."""
    reason: str

    def as_dict(self) -> dict[str, object]:
        """Return the entry of selection.json."""
        return asdict(self)

    def is_certain(self, error: float) -> bool:
        """Tell whether it lies beyond the threshold at so small an error, one that looks share."""
        return self.value is not None and self.is_beyond and self.p_value <= error


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """What one guard asks; the limit is relative to the value that `offset` is."""

    name: str
    limit: float
    doubt: Doubt
    offset: float = 0.0
    at_most: bool = True
    """Whether values above the limit are beyond it; those below (or at it) otherwise."""
    is_count: bool = False
    """Whether the value is what happened, and no estimate of anything: it decides as it is."""
    is_share: bool = False
    """Whether it lies between 0 and 1 and is written as a percentage."""

    def write(self, value: float) -> str:
        """Write a value of this guard in words."""
        return percent(value) if self.is_share else f"{value:.4g}"


def judge(
    question: Question,
    found: Comparison | None,
    words: str,
    *,
    alpha: float,
    split: str,
    confidence: float,
) -> Guard:
    """Return what a guard makes of a comparison.

    Args:
        question: What it asks.
        found: What was seen; None where nothing could be measured, which stops the candidate.
        words: The same in words.
        alpha: The candidate.
        split: The prompts.
        confidence: Two-sided, of the interval.
    """
    threshold = question.offset + question.limit
    if found is None:
        return Guard(
            name=question.name,
            alpha=alpha,
            split=split,
            value=None,
            ci_low=None,
            ci_high=None,
            p_value=1.0,
            threshold=threshold,
            num_prompts=0,
            state="cannot-tell",
            fired=True,
            is_beyond=False,
            reason=f"{question.name} could not be measured: stopped",
        )
    beyond = found.value > question.limit if question.at_most else found.value <= question.limit
    state: State = "cannot-tell"
    if question.is_count or found.p_value <= 1 - confidence:
        state = "fired" if beyond else "clear"
    fired = state == "fired" or (state == "cannot-tell" and _counts(question.doubt, beyond))
    low, high = (_placed(bound, question) for bound in (found.ci_low, found.ci_high))
    verdict = {"fired": "stopped", "clear": "fine", "cannot-tell": "cannot be told, "}[state]
    if state == "cannot-tell":
        verdict += "stopped" if fired else "let pass"
    spread = ""
    if low is not None and high is not None:
        bounds = f"{question.write(low)} to {question.write(high)}"
        spread = f" the {100 * confidence:g}% interval is {bounds},"
    return Guard(
        name=question.name,
        alpha=alpha,
        split=split,
        value=question.offset + found.value,
        ci_low=low,
        ci_high=high,
        p_value=found.p_value,
        threshold=threshold,
        num_prompts=found.num_prompts,
        state=state,
        fired=fired,
        is_beyond=beyond,
        reason=f"{words}; on {found.num_prompts} prompts{spread} "
        f"the threshold {question.write(threshold)}: {verdict}",
    )


def _placed(bound: float | None, question: Question) -> float | None:
    if bound is None:
        return None
    value = question.offset + bound
    return min(max(value, 0.0), 1.0) if question.is_share else value


def _counts(doubt: Doubt, beyond: bool) -> bool:
    return doubt == "stop" or (doubt == "by-value" and beyond)


def percent(share: float) -> str:
    """Write a share: `7.14%`."""
    return f"{100 * share:.3g}%"
