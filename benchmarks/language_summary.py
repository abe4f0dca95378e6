"""The tables of `language_study`: gains pooled over prompts and seeds, and what was picked.

The truth of a pick is measured on prompts that the selection did not see. Intervals of pooled
figures are of a bootstrap of two levels: seeds, and within each the prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.proof_answers import truth_gain
from benchmarks.proof_summary import significantly_worse

Line = Mapping[str, Any]
Values = npt.NDArray[np.float64]
CONFIDENCE = 0.95
GOAL = 0.7
"""Share of the oracle's gain that the selection shall recover."""
_NUM_RESAMPLES = 10_000
_PICKS = {
    "oracle": "oracle",
    "reward_alone": "highest mean reward",
    "chosen": "guarded selection",
}
_FORMS = {"tokens": ("tokens", ".1f"), "cut_off": ("cut off", ".1%")}
_FORMS |= {"repeated": ("repetitive", ".1%")}


def pooled(gains: Sequence[Sequence[float] | Values]) -> tuple[float, float, float]:
    """Return a mean gain with its interval over seeds and, within each, prompts.

    Args:
        gains: Per seed the paired gain of every prompt. Of one seed alone the interval is over
            prompts only.
    """
    rng = np.random.default_rng(0)
    values = [np.array(each, dtype=np.float64) for each in gains]
    sums: Values = np.zeros(_NUM_RESAMPLES)
    for _ in values:
        drawn = [rng.choice(each, size=(_NUM_RESAMPLES, each.size)).mean(axis=1) for each in values]
        sums += np.choose(rng.integers(len(values), size=_NUM_RESAMPLES), drawn)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(sums / len(values), (tail, 1 - tail))
    return float(np.mean([each.mean() for each in values])), float(low), float(high)


def oracle_over_full(lines: Sequence[Line], full: Sequence[Line]) -> list[Values]:
    """Return, per seed of both, the oracle's truth less that of the model of all data as it is."""
    found = []
    for line in lines:
        for other in full:
            if other["seed"] == line["seed"]:
                aligned = [np.array(_at(each, 0.0, "truths")) for each in (line, other)]
                behind = (aligned[0] - aligned[1])[line["num_selected"] :]
                found.append(gains_of(line, "oracle") + behind)
    return found


def over_pairs(lines: Sequence[Line], gain: Callable[[Line], Values]) -> tuple[float, float, float]:
    """Return the pooled gain over all pairs: those of a seed answer the same prompts."""
    by_seed: dict[int, list[Values]] = {}
    for line in lines:
        by_seed.setdefault(line["seed"], []).append(gain(line))
    return pooled([np.mean(of_seed, axis=0) for of_seed in by_seed.values()])


def oracle_picks(line: Line) -> tuple[float, float]:
    """Return the alphas of the highest truth on either half of the prompts that picks are for."""
    halves = _halves(line)
    first, second = (
        max(line["curves"], key=lambda curve: np.array(curve["truths"])[half].mean())["alpha"]
        for half in halves
    )
    return first, second


def gains_of(line: Line, pick: str) -> Values:
    """Return the truth gain of a pick on every prompt that the selection did not see.

    The oracle's alpha on one half of them is the one that is best on the other.
    """
    if pick != "oracle":
        return _gain(line, line["picks"][pick], "truths")[line["num_selected"] :]
    first, second = oracle_picks(line)
    one, other = _halves(line)
    return np.concatenate([_gain(line, second, "truths")[one], _gain(line, first, "truths")[other]])


def render(lines: Sequence[Line]) -> str:
    """Return the tables as Markdown."""
    by_fraction: dict[float, list[Line]] = {}
    for line in sorted(lines, key=lambda line: (line["fraction"], line["seed"])):
        by_fraction.setdefault(line["fraction"], []).append(line)
    ordered = [line for found in by_fraction.values() for line in found]
    return (
        "\n\n".join(
            [
                _head(ordered),
                _answers(by_fraction),
                _picks(ordered),
                *(_curves(fraction, found) for fraction, found in by_fraction.items()),
            ]
        )
        + "\n"
    )


def _head(lines: Sequence[Line]) -> str:
    first = lines[0]
    settings, lab = first["settings"], first["settings"]["lab"]
    seeds = sorted({line["seed"] for line in lines})
    models = [
        [
            str(seed),
            *(
                f"{of_seed['models'][name]['heldout_accuracy']:.2f} "
                f"({of_seed['models'][name]['num_pairs']} pairs)"
                for name in ("scorer", "guard")
            ),
            str(sum(line["fit"] for line in lines if line["seed"] == seed)),
        ]
        for seed in seeds
        for of_seed in [next(line for line in lines if line["seed"] == seed)]
    ]
    table = _table(
        ("seed", "accuracy of the reward model", "of the guard", "pairs that `diagnose` calls fit"),
        models,
    )
    partly = " **Partial**: one seed; intervals are over prompts." if len(seeds) == 1 else ""
    return (
        "# Extrapolation of a real language model, where the truth is known\n\n"
        "Written by `python -m benchmarks.language_study --summarize RESULTS --write`; settings "
        f"`{first['digest']}`, frozen before these seeds were run. SmolLM2-135M-Instruct, aligned "
        f"by DPO on shares of {lab['num_preference_prompts']} prompts' own answers (rate "
        f"{lab['dpo_learning_rate']:g}, beta {lab['dpo_beta']:g}), judged by two reward models "
        f"that were trained from it on pairs of {lab['num_reward_prompts']} other prompts each. "
        "The truth is the share of a prompt's two constraints that an answer keeps to. Per pair "
        f"{settings['num_prompts']} held-out prompts, one answer to each at every alpha, "
        f"sampled under the same noise; the selection sees {first['num_selected']} of them, and "
        "what it and the others picked is measured on the rest. Intervals of 95%, over seeds and "
        f"prompts unless said otherwise.{partly}\n\n{table}"
    )


def _answers(by_fraction: Mapping[float, Sequence[Line]]) -> str:
    lines = [line for found in by_fraction.values() for line in found]
    return "\n\n".join(
        [
            "## What was asked",
            _ask_gain(by_fraction),
            _ask_overshoot(lines),
            _ask_recovery(lines),
            "**What becomes of what was not trained for?** The columns *gain of other kinds*, "
            "*tokens*, *cut off* and *repetitive* below, each as a change from the aligned model.",
        ]
    )


def _ask_gain(by_fraction: Mapping[float, Sequence[Line]]) -> str:
    rows = []
    largest = max(by_fraction)
    for fraction, lines in by_fraction.items():
        over = oracle_over_full(lines, by_fraction[largest])
        alphas = [curve["alpha"] for curve in lines[0]["curves"]]
        intervals = {
            alpha: pooled([_gain(line, alpha, "truths") for line in lines])
            for alpha in alphas
            if alpha > 0
        }
        better = [alpha for alpha, (_, low, _) in intervals.items() if low > 0]
        worse = [alpha for alpha, (*_, high) in intervals.items() if high < 0]
        picked = sorted({alpha for line in lines for alpha in oracle_picks(line)})
        rows.append(
            [
                f"{fraction:.0%}",
                f"{np.mean([line['models']['aligned']['num_pairs'] for line in lines]):.0f}",
                _shown(*pooled([gains_of(line, "oracle") for line in lines])),
                " to ".join(f"{alpha:g}" for alpha in dict.fromkeys((picked[0], picked[-1]))),
                ", ".join(f"{alpha:g}" for alpha in better) or "none",
                f"{worse[0]:g}" if worse else "never",
                _shown(*pooled(over)) if over and fraction < largest else "",
            ]
        )
    header = (
        *("data", "preference pairs", "oracle's gain", "at alpha"),
        *("interval above 0 at alpha", "below 0 from"),
        f"over {largest:.0%} as aligned",
    )
    return (
        "**Does extrapolation gain, and does less training allow more of it?**\n\n"
        f"{_table(header, rows)}"
    )


def _ask_overshoot(lines: Sequence[Line]) -> str:
    worse, after = _num_worse(lines, "reward_alone")
    highest = sum(line["picks"]["reward_alone"] > max(oracle_picks(line)) for line in lines)
    return (
        f"**Does the alpha of the highest mean reward overshoot?** It lies above the oracle's in "
        f"{highest} of {len(lines)} pairs, and its truth is significantly below the aligned "
        f"model's in {worse} ({after} after Holm); mean gain "
        f"{_shown(*over_pairs(lines, partial(gains_of, pick='reward_alone')))}."
    )


def _ask_recovery(lines: Sequence[Line]) -> str:
    worse, after = _num_worse(lines, "chosen")
    chosen, oracle = (over_pairs(lines, partial(gains_of, pick=p)) for p in ("chosen", "oracle"))
    words = (
        f"**Does the guarded selection recover {GOAL:.0%} of the oracle's gain, and is it never "
        f"significantly below the aligned model?** Mean gain {_shown(*chosen)} beside "
        f"{_shown(*oracle)} of the oracle: "
    )
    if oracle[0] <= 0:
        words += "the oracle gains nothing, so there is nothing to recover"
    else:
        met = "met" if chosen[0] >= GOAL * oracle[0] else "**missed**"
        words += (
            f"{chosen[0] / oracle[0]:.0%} of it, the goal is {met}; beyond {GOAL:.0%} of it lie "
        )
        words += _shown(*over_pairs(lines, _beyond_goal))
    kept = sum(line["picks"]["chosen"] == 0 for line in lines)
    return (
        f"{words}. It keeps the aligned model in {kept} of {len(lines)} pairs, and is "
        f"significantly below it in {worse} ({after} after Holm)."
    )


def _beyond_goal(line: Line) -> Values:
    return gains_of(line, "chosen") - GOAL * gains_of(line, "oracle")


def _num_worse(lines: Sequence[Line], pick: str) -> tuple[int, int]:
    """Count pairs whose truth is significantly below the aligned model's, over prompts."""
    return significantly_worse([{"truth": {pick: _truth_gain(line, pick)}} for line in lines], pick)


def _truth_gain(line: Line, pick: str) -> dict[str, Any]:
    gains = gains_of(line, pick)
    return truth_gain(gains, np.zeros(len(gains)))


def _picks(lines: Sequence[Line]) -> str:
    rows = [
        [
            str(line["seed"]),
            f"{line['fraction']:.0%}",
            *(cell for pick in _PICKS for cell in (_alpha_of(line, pick), _own(line, pick))),
        ]
        for line in lines
    ]
    header = ("seed", "data", *(cell for name in _PICKS.values() for cell in (name, "truth gain")))
    reasons = [
        f"- seed {line['seed']}, {line['fraction']:.0%}: {line['verdict']}: {line['reason']}"
        for line in lines
    ]
    return (
        "## What was picked\n\nIntervals over the prompts of one pair. The oracle picks on either "
        f"half for the other.\n\n{_table(header, rows)}\n\nWhat the selection says:\n\n"
        + "\n".join(reasons)
    )


def _alpha_of(line: Line, pick: str) -> str:
    alphas = oracle_picks(line) if pick == "oracle" else (line["picks"][pick],)
    return ", ".join(f"{alpha:g}" for alpha in dict.fromkeys(alphas))


def _own(line: Line, pick: str) -> str:
    found = _truth_gain(line, pick)
    if found["ci_low"] is None:
        return f"{found['gain']:+.3f}"
    return _shown(found["gain"], found["ci_low"], found["ci_high"])


def _curves(fraction: float, lines: Sequence[Line]) -> str:
    rows = []
    for i, first in enumerate(lines[0]["curves"]):
        alpha, curves = first["alpha"], [line["curves"][i] for line in lines]
        changed = partial(_change, lines, alpha)
        forms = [
            f"{_mean(curves, name):{form}}" if alpha == 0 else changed(name, form)
            for name, (_, form) in _FORMS.items()
        ]
        rows.append(
            [
                f"{alpha:g}",
                f"{_mean(curves, 'truths'):.3f}",
                changed("truths"),
                f"{_mean(curves, 'scorer'):.3f}",
                f"{_mean(curves, 'guard'):.3f}",
                changed("other_truths"),
                *forms,
            ]
        )
    header = (
        *("alpha", "truth", "gain", "reward", "guard's reward", "gain of other kinds"),
        *(name for name, _ in _FORMS.values()),
    )
    seeds = ", ".join(str(line["seed"]) for line in lines)
    num_prompts = len(lines[0]["curves"][0]["truths"])
    words = (
        f"## {fraction:.0%} of the preference data\n\nSeeds {seeds}; {num_prompts} prompts each."
    )
    return f"{words}\n\n{_table(header, rows)}"


def _change(lines: Sequence[Line], alpha: float, name: str, form: str = ".3f") -> str:
    if alpha == 0:
        return ""
    return _shown(*pooled([_gain(line, alpha, name) for line in lines]), form)


def _gain(line: Line, alpha: float, name: str) -> Values:
    return np.subtract(_at(line, alpha, name), _at(line, 0.0, name), dtype=np.float64)


def _at(line: Line, alpha: float, name: str) -> Sequence[float]:
    [found] = (curve[name] for curve in line["curves"] if curve["alpha"] == alpha)
    return found  # type: ignore[no-any-return]


def _halves(line: Line) -> tuple[slice, slice]:
    first = line["num_selected"]
    middle = first + _num_truth(line) // 2
    return slice(first, middle), slice(middle, first + _num_truth(line))


def _num_truth(line: Line) -> int:
    return len(line["curves"][0]["truths"]) - int(line["num_selected"])


def _mean(curves: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(np.mean([np.mean(curve[name]) for curve in curves]))


def _shown(mean: float, low: float, high: float, form: str = ".3f") -> str:
    return f"{mean:+{form}} [{low:+{form}}, {high:+{form}}]"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
