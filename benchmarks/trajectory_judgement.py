"""Does the back-test of a trajectory predict what a longer run shows? Hits and misses.

    python -m benchmarks.trajectory_judgement [--write] [--first-seed N] [--seeds N]

Trainings of known kinds run to four times the steps that are judged: 20 checkpoints are given to
`diagnose --trajectory`'s judgement, the rest is the truth. A promise ("this fit beats no change at
this horizon") is a hit where the fit's forecast lies nearer to the true later checkpoint than the
last one given does. `keep` is a hit where no fit would have come 5% nearer at 1.25 times the span.
Beside it: what always extrapolating would have done. The verdict's rule was made by looking at
seeds below 40, and mended once by what it broke on seeds 100 to 139; the table is of others.

Needs: a CPU core. Takes: three minutes.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from expo_ray.extrapolation.arithmetic.path_sums import PathSums, measure_path
from expo_ray.extrapolation.trajectories.backtest import HORIZONS, back_tests, forecast_errors
from expo_ray.extrapolation.trajectories.forecasts import FORECAST_KINDS, Forecast
from expo_ray.extrapolation.trajectories.path_shape import squared_distance, total_of
from expo_ray.extrapolation.trajectories.verdict import EXTRAPOLATE, KEEP, Verdict, judge

RESULT = Path(__file__).resolve().parent / "results" / "trajectory_judgement.md"
TURNS = "turns where the given part ends"
NUM_KNOWN = 20
NUM_VALUES = 1024
NUM_TENSORS = 2
ALWAYS = ("pair", "line", "rank1", "rank1 from last", "wsm from last", "ema from last")

Path1 = NDArray[np.float64]
Made = Callable[[NDArray[np.float64], np.random.Generator], Path1]


def _walk(time: NDArray[np.float64], rng: np.random.Generator) -> Path1:
    steps = rng.normal(size=(len(time), NUM_VALUES))
    steps *= np.sqrt(np.diff(time, prepend=0.0))[:, None]
    walked: Path1 = steps.cumsum(axis=0)
    return walked


def _line(time: NDArray[np.float64], rng: np.random.Generator) -> Path1:
    return np.outer(time, rng.normal(size=NUM_VALUES))


def _noisy_line(time: NDArray[np.float64], rng: np.random.Generator) -> Path1:
    size = rng.uniform(0.05, 0.5)
    noise: Path1 = size * rng.normal(size=(len(time), NUM_VALUES))
    return _line(time, rng) + noise


def _settling(time: NDArray[np.float64], rng: np.random.Generator) -> Path1:
    rate = rng.uniform(0.3, 4.0)
    return np.outer(1 - np.exp(-rate * time), rng.normal(size=NUM_VALUES))


def _root(time: NDArray[np.float64], rng: np.random.Generator) -> Path1:
    return np.outer(np.sqrt(time), rng.normal(size=NUM_VALUES)) + 0.05 * _walk(time, rng)


def _drifting_walk(time: NDArray[np.float64], rng: np.random.Generator) -> Path1:
    return rng.uniform(0.3, 3.0) * _line(time, rng) + _walk(time, rng)


def _two_directions(time: NDArray[np.float64], rng: np.random.Generator) -> Path1:
    fast = np.outer(1 - np.exp(-4 * time), rng.normal(size=NUM_VALUES))
    return fast + rng.uniform(0.2, 1.0) * _line(time, rng) + 0.1 * _walk(time, rng)


def _turn(time: NDArray[np.float64], rng: np.random.Generator) -> Path1:
    """A line that turns when the given part ends: nothing in it tells."""
    after = np.outer(np.maximum(0, time - 1), rng.normal(size=NUM_VALUES))
    return np.outer(np.minimum(time, 1), rng.normal(size=NUM_VALUES)) + after


def _decayed(time: NDArray[np.float64], rng: np.random.Generator) -> Path1:
    """A learning rate that falls as a cosine to zero at the end of the given part, then stands."""
    gone = np.where(time < 1, 0.5 * time + np.sin(np.pi * np.minimum(time, 1)) / (2 * np.pi), 0.5)
    return np.outer(gone, rng.normal(size=NUM_VALUES)) + 0.02 * _walk(gone, rng)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kind:
    """One kind of training."""

    name: str
    make: Made
    uneven: bool = False
    dtype: torch.dtype = torch.float32
    size: float = 1.0
    """Of the change over the given part, where weights are of size 20."""


KINDS = (
    Kind(name="line", make=_line),
    Kind(name="line, uneven steps", make=_line, uneven=True),
    Kind(name="line and noise", make=_noisy_line),
    Kind(name="line and noise, uneven steps", make=_noisy_line, uneven=True),
    Kind(name="settles", make=_settling),
    Kind(name="slows like a root", make=_root),
    Kind(name="random walk", make=_walk),
    Kind(name="drifting walk", make=_drifting_walk),
    Kind(name="fast part, then a slow line", make=_two_directions),
    Kind(name=TURNS, make=_turn),
    Kind(name="rate decayed to zero", make=_decayed),
    Kind(name="drifting walk, bf16", make=_drifting_walk, dtype=torch.bfloat16),
    Kind(name="drifting walk, bf16, tiny steps", make=_drifting_walk, dtype=torch.bfloat16,
         size=0.02),
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """One run: what was promised, and what became of it."""

    verdict: Verdict
    truth: Mapping[str, Mapping[float, float]]
    """By forecast and horizon its true error relative to no change."""

    @property
    def promises(self) -> list[bool]:
        """Of the fit of the verdict, whether it beat no change, at each horizon promised."""
        if self.verdict.forecast is None or self.verdict.horizon is None:
            return []
        errors = self.truth[self.verdict.forecast.name]
        return [errors[h] < 1 for h in HORIZONS if h <= self.verdict.horizon]

    @property
    def could_gain(self) -> bool:
        """Whether some fit would have come 5% nearer at the shortest horizon."""
        return min(errors[HORIZONS[0]] for errors in self.truth.values()) <= 0.95


def run(kind: Kind, seed: int) -> Outcome:
    """Make one training, judge its first part and compare with the rest."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    known = np.linspace(0, 1, NUM_KNOWN)
    if kind.uneven:
        known[1:-1] = np.sort(rng.uniform(0, 1, NUM_KNOWN - 2))
    time = np.concatenate([known, HORIZONS])
    path = 20 * rng.normal(size=NUM_VALUES) + kind.size * kind.make(time, rng)
    parts = torch.from_numpy(path).to(kind.dtype).tensor_split(NUM_TENSORS, dim=1)
    steps = (1000 * time).tolist()
    whole = {f"layers.{i}.weight": measure_path(list(part)) for i, part in enumerate(parts)}
    early = {
        f"layers.{i}.weight": measure_path(list(part[:NUM_KNOWN])) for i, part in enumerate(parts)
    }
    verdict = judge(back_tests(early, steps[:NUM_KNOWN]), steps[:NUM_KNOWN])
    truth = {forecast.name: true_errors(forecast, whole, steps) for forecast in FORECAST_KINDS}
    return Outcome(verdict=verdict, truth=truth)


def true_errors(
    forecast: Forecast, whole: Mapping[str, PathSums], steps: Sequence[float]
) -> dict[float, float]:
    """Return the errors at each horizon, relative to those of the last checkpoint given."""
    total = total_of(whole.values())
    assert total is not None
    targets = list(range(NUM_KNOWN, len(steps)))
    squares, _ = forecast_errors(forecast, whole, total, steps, NUM_KNOWN, targets)
    still = [max(squared_distance(total, NUM_KNOWN - 1, k), 1e-12) for k in targets]
    return dict(zip(HORIZONS, np.sqrt(squares / np.array(still)).tolist(), strict=True))


def table(outcomes: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """Return the hits and misses by kind, as rows of a Markdown table."""
    lines = [
        "| training | extrapolate / keep / cannot tell | promises kept | median horizon | "
        "promised, true gain there | keep: right, missed |",
        "|---|---|---|---|---|---|",
    ]
    everything = [one for some in outcomes.values() for one in some]
    for name, some in [*outcomes.items(), ("**all**", everything)]:
        decisions = [one.verdict.decision for one in some]
        counts = " / ".join(str(decisions.count(d)) for d in (EXTRAPOLATE, KEEP, "unknown"))
        kept = [promise for one in some for promise in one.promises]
        told = [one for one in some if one.promises]
        horizon = np.median([one.verdict.horizon or 1 for one in told]) if told else None
        promised = np.median([one.verdict.gain or 0 for one in told]) if told else None
        true = np.median([true_gain(one) for one in told]) if told else None
        quiet = [one for one in some if not one.promises]
        missed = sum(one.could_gain for one in quiet)
        lines.append(
            f"| {name} | {counts} | "
            + (f"{sum(kept)} of {len(kept)} ({np.mean(kept):.0%})" if kept else "-")
            + f" | {'-' if horizon is None else f'{horizon:g}'} | "
            + ("-" if promised is None else f"{promised:.0%}, {true:.0%}")
            + f" | {len(quiet) - missed}, {missed} |"
        )
    return lines


def own_table(outcomes: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """Return what became of every verdict at its own horizon, beside the pair on the same runs."""
    lines = [
        "| training | verdicts that extrapolate | hold at their own horizon | "
        "the pair, same runs and horizons |",
        "|---|---|---|---|",
    ]
    told = {name: [one for one in some if one.promises] for name, some in outcomes.items()}
    sums = {
        "**all**": [one for some in told.values() for one in some],
        "**all but those that turn**": [
            one for name, some in told.items() if name != TURNS for one in some
        ],
    }
    for name, some in [*told.items(), *sums.items()]:
        held = [true_gain(one) > 0 for one in some]
        pair = [one.truth["pair"][one.verdict.horizon or 0] < 1 for one in some]
        lines.append(f"| {name} | {len(some)} | {_share(held)} | {_share(pair)} |")
    return lines


def _share(hits: Sequence[bool]) -> str:
    return f"{sum(hits)} ({np.mean(hits):.0%})" if hits else "-"


def true_gain(one: Outcome) -> float:
    """Return how much nearer the fit of the verdict came at its horizon than no change."""
    assert one.verdict.forecast is not None
    assert one.verdict.horizon is not None
    return 1 - one.truth[one.verdict.forecast.name][one.verdict.horizon]


def always_table(outcomes: Mapping[str, Sequence[Outcome]]) -> list[str]:
    """Return in how many runs a fit beat no change that is always extrapolated by."""
    lines = [
        "| always by | " + " | ".join(f"{horizon:g} times" for horizon in HORIZONS) + " |",
        "|---" * (len(HORIZONS) + 1) + "|",
    ]
    everything = [one for some in outcomes.values() for one in some]
    for name in ALWAYS:
        shares = [np.mean([one.truth[name][h] < 1 for one in everything]) for h in HORIZONS]
        lines.append(f"| {name} | " + " | ".join(f"{share:.0%}" for share in shares) + " |")
    shares, pairs = [], []
    for h in HORIZONS:
        told = [one for one in everything if (one.verdict.horizon or 0) >= h]
        hits = [one.truth[one.verdict.forecast.name][h] < 1 for one in told if one.verdict.forecast]
        shares.append(f"{np.mean(hits):.0%} of {len(hits)} runs" if hits else "-")
        pair = [one.truth["pair"][h] < 1 for one in told]
        pairs.append(f"{np.mean(pair):.0%} of {len(pair)} runs" if pair else "-")
    lines.append("| **as the verdict says** | " + " | ".join(shares) + " |")
    lines.append("| the pair, in the same runs | " + " | ".join(pairs) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--write", action="store_true", help=f"write {RESULT.name}")
    parser.add_argument("--first-seed", type=int, default=200, help="the first of them")
    parser.add_argument("--seeds", type=int, default=40, help="runs of each kind")
    given = parser.parse_args()
    torch.set_num_threads(1)
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    outcomes = {kind.name: [run(kind, seed) for seed in seeds] for kind in KINDS}
    tables = (own_table(outcomes), table(outcomes), always_table(outcomes))
    text = "\n\n".join("\n".join(rows) for rows in tables)
    print(text)
    if given.write:
        RESULT.write_text(
            f"{HEADING.format(first=seeds[0], last=seeds[-1])}\n{text}\n{reading(outcomes)}"
        )


HEADING = """# Does the back-test of a trajectory predict the longer run?

Written by `python -m benchmarks.trajectory_judgement --write`: seeds {first} to {last} of each
kind. 20 checkpoints are given, the truth lies at 1.25 to 4 times their span. A promise is "this fit
beats no change at this horizon"; it is kept where the forecast lies nearer to the true checkpoint
than the last one given does. A verdict promises this of its own horizon and of all shorter ones,
which are easier: the first table is of the verdicts, each once, at its own. Gains are medians
there.
"""
READING = """
What nothing in the given part tells is not foreseen: a training that turns right where it ends
breaks every promise. Of the others {held} of {told} verdicts ({share_held:.0%}) hold at their own
horizon; with every shorter horizon counted, {kept} of {made} promises ({share:.0%}). Noise shortens
the horizon more than it had to.
"""


def reading(outcomes: Mapping[str, Sequence[Outcome]]) -> str:
    """Return what the table says in words."""
    foreseeable = [some for name, some in outcomes.items() if name != TURNS]
    held = [true_gain(one) > 0 for some in foreseeable for one in some if one.promises]
    kept = [promise for some in foreseeable for one in some for promise in one.promises]
    return READING.format(
        held=sum(held),
        told=len(held),
        share_held=np.mean(held),
        kept=sum(kept),
        made=len(kept),
        share=np.mean(kept),
    )


if __name__ == "__main__":
    main()
