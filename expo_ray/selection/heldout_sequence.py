"""Held-out prompts, spent in a fixed sequence: the chosen candidate first, then smaller ones.

The order comes from the tuning prompts alone, so that it is fixed before a held-out answer counts.
Fixed-sequence testing (Maurer, Hothorn and Lehmacher 1995) then needs no correction: each candidate
is tested at the full error rate, and the next one only where the gain of the one before it was
significant, and a guard stopped it all the same. For a false claim the first candidate without a
gain must be found significant, which happens as rarely as with one candidate. That holds for gains
alone: what a gate lets pass by mistake adds up over the candidates (`gates.gate_confidence`).

Where a gain is not confirmed, nothing is left to pass on. `heldout_reserve` keeps a share of the
error rate back for that case (the fallback procedure, Wiens and Dmitrienko 2005): each
candidate then gets its part of the error rate, and what a significant one had is passed on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from expo_ray.selection.bootstrap import Estimate
from expo_ray.selection.guard_findings import Guard
from expo_ray.selection.settings import SelectionSettings

Outcome = Literal["confirmed", "stopped", "not-confirmed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmation:
    """One candidate on the held-out prompts."""

    alpha: float
    gain: float | None
    ci_low: float | None
    ci_high: float | None
    num_pairs: int
    p_value: float
    level: float
    """Error rate that it was tested at, two-sided."""
    is_significant: bool
    """Whether the gain is, whatever the guards say."""
    stopped_by: tuple[str, ...]
    """Guards that fired on held-out prompts."""
    outcome: Outcome

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of selection.json."""
        return {**asdict(self), "stopped_by": list(self.stopped_by)}


def confirm_in_sequence(
    alphas: Sequence[float],
    measure: Callable[[float], tuple[Estimate, Sequence[Guard]]],
    settings: SelectionSettings,
    *,
    ask_sets: Callable[[float], Sequence[Guard]] | None = None,
) -> tuple[list[Confirmation], list[Guard]]:
    """Test candidates one after the other until one is confirmed or the error rate is spent.

    Args:
        alphas: In the order that the tuning prompts say; one alpha at least.
        measure: Returns the gain on held-out prompts and the guards there.
        settings: Confidence, reserve, least gain and least number of prompts.
        ask_sets: Returns the guards that further answers are needed for. Only a candidate is asked
            that would be confirmed without them: no other can still be chosen.

    Returns:
        Those that were tested, the last of them confirmed or not, and the guards of them all.
    """
    error, reserve = 1 - settings.confidence, settings.heldout_reserve
    tested: list[Confirmation] = []
    guards: list[Guard] = []
    share, passed = 1.0, 0.0
    for i, alpha in enumerate(alphas):
        is_last = i == len(alphas) - 1
        # The reserve is kept for a next one; the last has no next.
        own = share if is_last else share * (1 - reserve)
        share -= own
        level = error * (own + passed)
        if level <= 0:
            break
        one, findings = _test(alpha, measure, level, settings, ask_sets)
        tested.append(one)
        guards += findings
        # Without answers there is nothing to go on from: they are to be generated first.
        if one.outcome == "confirmed" or one.num_pairs == 0:
            break
        passed = own + passed if one.is_significant else 0.0
    return tested, guards


def _test(
    alpha: float,
    measure: Callable[[float], tuple[Estimate, Sequence[Guard]]],
    level: float,
    settings: SelectionSettings,
    ask_sets: Callable[[float], Sequence[Guard]] | None,
) -> tuple[Confirmation, Sequence[Guard]]:
    estimate, guards = measure(alpha)
    p_value = estimate.p_value(settings.min_gain)
    significant = (
        estimate.num_values >= settings.min_pairs
        and estimate.mean is not None
        and estimate.mean > settings.min_gain
        and p_value <= level
    )
    if significant and ask_sets is not None and not any(guard.fired for guard in guards):
        guards = [*guards, *ask_sets(alpha)]
    stopped_by = tuple(guard.name for guard in guards if guard.fired)
    outcome: Outcome = "not-confirmed"
    if significant:
        outcome = "stopped" if stopped_by else "confirmed"
    low, high = estimate.interval(settings.confidence)
    confirmation = Confirmation(
        alpha=alpha,
        gain=estimate.mean,
        ci_low=low,
        ci_high=high,
        num_pairs=estimate.num_values,
        p_value=p_value,
        level=level,
        is_significant=significant,
        stopped_by=stopped_by,
        outcome=outcome,
    )
    return confirmation, guards
