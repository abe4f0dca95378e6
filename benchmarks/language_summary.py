"""The tables of `language_study`: gains pooled over prompts and seeds, and what was picked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Line = Mapping[str, Any]
CONFIDENCE = 0.95
GOAL = 0.7
"""Share of the oracle's gain that the selection shall recover."""
_NUM_RESAMPLES = 10_000
_PICKS = {"oracle": "oracle", "reward_alone": "highest mean reward", "chosen": "guarded selection"}


def pooled(gains: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Return a mean gain with its interval over seeds and, within each, prompts.

    Args:
        gains: Per seed the paired gain of every prompt. Of one seed alone the interval is over
            prompts only.

    Returns:
        Mean, low and high, the latter by a bootstrap of two levels.
    """
    rng = np.random.default_rng(0)
    values = [np.array(each, dtype=np.float64) for each in gains]
    sums: npt.NDArray[np.float64] = np.zeros(_NUM_RESAMPLES)
    for _ in values:
        drawn = [rng.choice(each, size=(_NUM_RESAMPLES, each.size)).mean(axis=1) for each in values]
        sums += np.choose(rng.integers(len(values), size=_NUM_RESAMPLES), drawn)
    means = sums / len(values)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, (tail, 1 - tail))
    return float(np.mean([each.mean() for each in values])), float(low), float(high)


def render(lines: Sequence[Line]) -> str:
    """Return the tables as Markdown."""
    by_fraction: dict[float, list[Line]] = {}
    for line in sorted(lines, key=lambda line: (line["fraction"], line["seed"])):
        by_fraction.setdefault(line["fraction"], []).append(line)
    parts = [_curves(fraction, found) for fraction, found in by_fraction.items()]
    return "\n\n".join([*parts, _picks(lines), _verdict(lines)]) + "\n"


def _curves(fraction: float, lines: Sequence[Line]) -> str:
    seeds = ", ".join(str(line["seed"]) for line in lines)
    num_prompts = len(lines[0]["curves"][0]["truths"])
    rows = []
    for i, first in enumerate(lines[0]["curves"]):
        curves = [line["curves"][i] for line in lines]
        rows.append(
            [
                f"{first['alpha']:g}",
                f"{_mean(curves, 'truths'):.3f}",
                _gain(lines, i, "truths"),
                f"{_mean(curves, 'scorer'):.3f}",
                f"{_mean(curves, 'guard'):.3f}",
                _gain(lines, i, "other_truths"),
                f"{_mean(curves, 'tokens'):.1f}",
                f"{_mean(curves, 'cut_off'):.0%}",
                f"{_mean(curves, 'repeated'):.0%}",
            ]
        )
    header = (
        *("alpha", "truth", "gain", "reward", "guard's reward", "gain of other kinds"),
        *("tokens", "cut off", "repetitive"),
    )
    words = (
        f"## {fraction:.0%} of the preference data\n\nSeeds {seeds}; {num_prompts} prompts each."
    )
    return f"{words}\n\n{_table(header, rows)}"


def _mean(curves: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(np.mean([np.mean(curve[name]) for curve in curves]))


def _gain(lines: Sequence[Line], i: int, name: str) -> str:
    gains = []
    for line in lines:
        base = next(curve for curve in line["curves"] if curve["alpha"] == 0)
        gains.append(np.subtract(line["curves"][i][name], base[name]))
    return "" if not any(np.any(each) for each in gains) else _shown(*pooled(gains))


def _picks(lines: Sequence[Line]) -> str:
    rows = [
        [
            str(line["seed"]),
            f"{line['fraction']:.0%}",
            *(
                cell
                for name in _PICKS
                for pick in (line["picks"][name],)
                for cell in (f"{pick['alpha']:g}", _own(pick))
            ),
        ]
        for line in lines
    ]
    header = ("seed", "data", *(cell for name in _PICKS.values() for cell in (name, "truth gain")))
    return f"## What was picked\n\n{_table(header, rows)}"


def _own(pick: Mapping[str, Any]) -> str:
    if pick["ci_low"] is None:
        return f"{pick['gain']:+.3f}"
    return _shown(pick["gain"], pick["ci_low"], pick["ci_high"])


def _verdict(lines: Sequence[Line]) -> str:
    gain = {name: np.mean([line["picks"][name]["gain"] for line in lines]) for name in _PICKS}
    below = {
        name: sum((line["picks"][name]["ci_high"] or 0) < 0 for line in lines) for name in _PICKS
    }
    found = [f"Of {len(lines)} pairs, mean truth gain by pick:"]
    found += [
        f"- {words}: {gain[name]:+.3f}, significantly below the aligned model in {below[name]}"
        for name, words in _PICKS.items()
    ]
    if gain["oracle"] > 0:
        share = gain["chosen"] / gain["oracle"]
        met = "met" if share >= GOAL else "missed"
        found.append(
            f"\nThe selection recovers {share:.0%} of the oracle's gain: goal {GOAL:.0%}, {met}."
        )
    else:
        found.append("\nThe oracle gains nothing: there is nothing to recover.")
    return "## Together\n\n" + "\n".join(found)


def _shown(mean: float, low: float, high: float) -> str:
    return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
