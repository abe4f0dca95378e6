"""Was the choice really good? The laboratory's hidden truth, which the selection never sees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from expo_ray.reports.pairing import Gain, gain_curve, paired_gain
from expo_ray.reports.wording import (
    change,
    confidence,
    format_alpha,
    interval_name,
    rejected_alpha,
)

DECIMALS = 2


@dataclass(frozen=True, kw_only=True, slots=True)
class TruthVerdict:
    """What the hidden truth says about the choice."""

    answer: str
    """One or two words: Yes, No, Undecided."""
    explanation: str
    oracle: str
    """What a choice by the truth itself would have brought."""
    judged: Gain
    best: Gain | None

    @property
    def fell(self) -> bool:
        """Tell whether the truth fell for sure at the judged alpha."""
        return self.judged.sign < 0


def judge_by_truth(
    selection: Mapping[str, Any], truth: Mapping[float, pa.Table]
) -> TruthVerdict | None:
    """Compare the chosen alpha, and the one that the truth would have chosen, with aligned.

    The truth's own choice is made on tuning prompts and both are measured on held-out prompts, as
    the selection does: picking and measuring on the same prompts would flatter it.
    """
    chosen = selection["verdict"] == "extrapolate"
    alpha = selection["best_alpha"] if chosen else rejected_alpha(selection)
    if alpha is None:
        return None
    level = confidence(selection)
    split: str | None = "heldout"
    judged = paired_gain(truth, alpha, split=split, confidence=level)
    if judged is None:
        split = None
        judged = paired_gain(truth, alpha, split=split, confidence=level)
    if judged is None:
        return None
    label = interval_name(selection)
    where = f"{judged.num_pairs} {'held-out ' if split else ''}prompts"
    answer, explanation = _explain(judged, label, chosen=chosen, where=where)
    candidates = [c["alpha"] for c in selection["candidates"]]
    curve = gain_curve(truth, alphas=candidates, split="tuning", confidence=level)
    favourite = max(curve, key=lambda gain: gain.mean, default=None)
    best = favourite and paired_gain(truth, favourite.alpha, split=split, confidence=level)
    return TruthVerdict(
        answer=answer,
        explanation=explanation,
        oracle="" if best is None else _compare(judged, best, label, chosen=chosen),
        judged=judged,
        best=best,
    )


def _words(gain: Gain, label: str) -> str:
    words, bounds = change(gain.ci_low, gain.mean, gain.ci_high, DECIMALS)
    return f"{words} ({label} {bounds})"


def _explain(judged: Gain, label: str, *, chosen: bool, where: str) -> tuple[str, str]:
    role = "chosen" if chosen else "rejected"
    place = f"At the {role} alpha {format_alpha(judged.alpha)}"
    fact = f"{place} the hidden truth {_words(judged, label)} on {where}"
    if chosen:
        return {
            1: ("Yes", f"{fact}."),
            0: (
                "Undecided",
                f"{fact}: the interval includes zero, so the reward rose without a proven real "
                "gain.",
            ),
            -1: (
                "No",
                f"{fact}: it fell while the reward rose. The reward model was over-optimised; it "
                "prefers responses that are worse. A stronger or a second reward model is needed.",
            ),
        }[judged.sign]
    return {
        1: ("No", f"{fact}: a real gain was left on the table."),
        0: (
            "Undecided",
            f"{fact}: the interval includes zero, so whether a gain was lost cannot be told.",
        ),
        -1: ("Yes", f"{fact}: keeping the aligned model avoided a real loss."),
    }[judged.sign]


def _compare(judged: Gain, best: Gain, label: str, *, chosen: bool) -> str:
    if best.alpha == 0:
        return "On the tuning prompts no candidate had a higher mean of the truth than aligned."
    if best.alpha == judged.alpha:
        return "The truth itself, on the tuning prompts, would have picked the same alpha."
    text = (
        f"Had the truth been visible on the tuning prompts, it would have picked alpha "
        f"{format_alpha(best.alpha)}; there it {_words(best, label)} on the same prompts"
    )
    if chosen and best.sign > 0 and judged.sign > 0:
        return (
            f"{text}, so the choice by reward reached {100 * judged.mean / best.mean:.0f}% of that."
        )
    return f"{text}."
