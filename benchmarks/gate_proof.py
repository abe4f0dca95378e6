"""How often the gate lets a worse candidate pass, and an equal one, at the number planned.

    python -m benchmarks.gate_proof            prints the tables
    python -m benchmarks.gate_proof --write    into benchmarks/results/gate_proof.md

Simulated pairs of models, no model of language: the aligned one and a candidate answer the same
prompts, right or wrong; shares and the correlation of their answers are set, and the candidate is
as good, or as much worse as the margin allows (two points). The number of prompts is what
`plan-prompts` asks for: from the true share and correlation, or from a pilot of 200 prompts that is
drawn anew for each pair. Beside the gate's own test stand others that were considered. With four
samples per prompt the answers are shares, and the gate decides by the mean of their differences;
there a candidate may also be worse by whole failures alone, on two prompts of a hundred. And
several candidates, all of them too bad, have their turn one after the other.

Needs: a CPU core. Takes: 3 minutes.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import stats

from expo_ray.evaluation.prompt_plan import upper_limit_of_share
from expo_ray.selection.gates import gate_confidence
from expo_ray.selection.paired_proportions import score_statistic
from expo_ray.selection.sample_size import (
    prompts_for_margin,
    prompts_for_shares,
    variance_of_pairs,
)

RESULTS = Path(__file__).parent / "results" / "gate_proof.md"
MARGIN = 0.02
CONFIDENCE = 0.95
POWER = 0.8
ACCURACIES = (0.3, 0.5, 0.7, 0.9, 0.97)
CORRELATIONS = (0.2, 0.5, 0.8, 0.95)
NUM_PAIRS = 20_000
NUM_PILOT_PAIRS = 4_000
NUM_SAMPLED_PAIRS = 1_000
PILOT = 200
NUM_RARE_PAIRS = 4_000
FEW = (10, 20, 50, 100, 188, 189, 250, 400, 1000)
LENGTHS = (1, 2, 3, 5, 8)
NUM_RESAMPLES = 500
TESTS = ("gate", "Tango at 90%", "Student", "percentiles")
IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """One kind of pair of models."""

    accuracy: float
    correlation: float

    def shares(self, worse: float) -> tuple[float, float]:
        """Return how many prompts are gained and lost by a candidate that much worse."""
        first, second = self.accuracy, self.accuracy - worse
        spread = np.sqrt(first * (1 - first) * second * (1 - second))
        # No correlation makes more answers agree than the worse of both has.
        both = min(first * second + self.correlation * spread, first, second)
        return second - both, first - both

    @property
    def num_prompts(self) -> int:
        return planned(variance_of_pairs(self.accuracy, self.correlation))

    @property
    def name(self) -> str:
        return f"{self.accuracy:g} | {self.correlation:g}"


@functools.cache
def planned(variance: float) -> int:
    """Return the number of prompts that the planner asks for."""
    asked = {"power": POWER, "confidence": CONFIDENCE}
    return prompts_for_margin(variance, MARGIN, proportions=True, **asked)


def passes(test: str, gained: IntArray, lost: IntArray, n: IntArray | int) -> npt.NDArray[np.bool_]:
    """Return which pairs a test lets pass: no worse than the margin."""
    if test == "gate":
        z = score_statistic(gained, lost, n, -MARGIN)
        return np.asarray(z > stats.norm.ppf((1 + CONFIDENCE) / 2))
    if test == "Tango at 90%":
        return np.asarray(score_statistic(gained, lost, n, -MARGIN) > stats.norm.ppf(CONFIDENCE))
    difference = (gained - lost) / n
    if test == "Student":
        error = np.sqrt(((gained + lost) / n - difference**2) / (np.asarray(n) - 1))
        reach = stats.t.ppf((1 + CONFIDENCE) / 2, np.asarray(n) - 1)
        return np.asarray(difference - reach * error > -MARGIN)
    return _by_percentiles(gained, lost, n)


def _by_percentiles(gained: IntArray, lost: IntArray, n: IntArray | int) -> npt.NDArray[np.bool_]:
    """The plain bootstrap: prompts of three kinds, drawn again."""
    rng = np.random.default_rng(7)
    sizes = np.broadcast_to(n, gained.shape)
    shares = np.stack([gained / sizes, lost / sizes, 1 - (gained + lost) / sizes], axis=1)
    draws = rng.multinomial(sizes[:, None], shares[:, None], size=(gained.size, NUM_RESAMPLES))
    differences = (draws[..., 0] - draws[..., 1]) / sizes[:, None]
    return np.asarray(np.quantile(differences, (1 - CONFIDENCE) / 2, axis=1) > -MARGIN)


def draw(setting: Setting, worse: float, n: IntArray | int, num_pairs: int, seed: int) -> IntArray:
    """Return the gained and lost prompts of simulated pairs."""
    gained, lost = setting.shares(worse)
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(n, [gained, lost, 1 - gained - lost], size=num_pairs)
    return np.asarray(drawn[:, :2].T)


def known(settings: list[Setting]) -> Iterator[str]:
    """Yield the rows of the table where share and correlation are known."""
    for i, setting in enumerate(settings):
        n = setting.num_prompts
        cells = []
        for worse in (MARGIN, 0.0):
            gained, lost = draw(setting, worse, n, NUM_PAIRS, seed=2 * i + (worse > 0))
            some = slice(None, 2000)
            cells.append(
                [passes(t, gained, lost, n).mean() for t in TESTS[:-1]]
                + [passes(TESTS[-1], gained[some], lost[some], n).mean()]
            )
        yield f"| {setting.name} | {n:,} | {_cells(cells[0], 2)} | {_cells(cells[1], 1)} |"


def by_pilot(settings: list[Setting]) -> Iterator[str]:
    """Yield the rows of the table where the number comes from a pilot of each pair."""
    for i, setting in enumerate(settings):
        gained, lost = draw(setting, 0.0, PILOT, NUM_PILOT_PAIRS, seed=1000 + i)
        sizes = np.array([planned(upper_limit_of_share(int(k), PILOT)) for k in gained + lost])
        rates = []
        for worse in (MARGIN, 0.0):
            again = draw(setting, worse, sizes, NUM_PILOT_PAIRS, seed=2000 + 2 * i + (worse > 0))
            rates.append(passes("gate", again[0], again[1], sizes).mean())
        middle = f"{np.median(sizes):,.0f}"
        yield f"| {setting.name} | {setting.num_prompts:,} | {middle} | " + (
            f"{rates[0]:.2%} | {rates[1]:.1%} |"
        )


def sampled(num_samples: int = 4) -> Iterator[str]:
    """Yield the rows of the table with several samples per prompt: shares of right answers."""
    for i, (accuracy, same) in enumerate([(0.3, 0.5), (0.5, 0.5), (0.7, 0.9), (0.9, 0.9)]):
        rng = np.random.default_rng(3000 + i)
        pilot = _sampled(rng, accuracy, same, 0.0, num_samples, (1, 200_000))[0]
        square = float((pilot**2).mean())
        n = prompts_for_shares(square, MARGIN, power=POWER, confidence=CONFIDENCE)
        rates = []
        for worse in (MARGIN, 0.0):
            passed = []
            for _ in range(NUM_SAMPLED_PAIRS // 50):
                values = _sampled(rng, accuracy, same, worse, num_samples, (50, n))
                passed.append(passes_by_shares(values))
            rates.append(np.mean(passed))
        yield f"| {accuracy:g} | {same:g} | {n:,} | {rates[0]:.2%} | {rates[1]:.1%} |"


def passes_by_shares(values: FloatArray) -> npt.NDArray[np.bool_]:
    """Return which pairs the gate lets pass by differences of shares, one pair per row."""
    mean, square = values.mean(axis=1), (values**2).mean(axis=1)
    weight = (1 - square) / (1 + mean)
    variance = square + weight * (mean + MARGIN) - MARGIN**2
    reach = stats.norm.ppf((1 + CONFIDENCE) / 2)
    return np.asarray(mean + MARGIN > reach * np.sqrt(np.maximum(variance, 0) / values.shape[1]))


def by_student(values: FloatArray) -> npt.NDArray[np.bool_]:
    """The same by Student's interval, where no spread counts as none."""
    n = values.shape[1]
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, n - 1)
    return np.asarray(
        values.mean(axis=1) - reach * values.std(axis=1, ddof=1) / np.sqrt(n) > -MARGIN
    )


def rare(num_samples: int = 4) -> Iterator[str]:
    """Yield the rows of the table where a candidate is worse by rare whole failures alone."""
    for i, noise in enumerate((0.0, 0.1, 0.5)):
        for n in FEW:
            rng = np.random.default_rng([4000 + i, n])
            size = (NUM_RARE_PAIRS, n)
            accuracy = 0.95
            chance = (
                rng.beta(0.8 * accuracy, 0.8 * (1 - accuracy), size) if noise else np.ones(size)
            )
            aligned = rng.binomial(num_samples, chance) / num_samples
            again = rng.binomial(num_samples, chance) / num_samples
            same = np.where(rng.random(size) < noise, again, aligned)
            lost = rng.random(size) < MARGIN / (accuracy if noise else 1.0)
            values = np.where(lost, 0.0, same) - aligned
            rates = [float(test(values).mean()) for test in (passes_by_shares, by_student)]
            yield f"| {noise:g} | {n:,} | {rates[0]:.2%} | {rates[1]:.1%} |"


def in_turn() -> Iterator[str]:
    """Yield the rows of the table where several candidates, all too bad, have their turn."""
    setting = Setting(accuracy=0.7, correlation=0.8)
    n = setting.num_prompts
    for length in LENGTHS:
        gained, lost = draw(setting, MARGIN, n, NUM_PAIRS * length, seed=5000 + length)
        z = score_statistic(gained, lost, n, -MARGIN).reshape(NUM_PAIRS, length)
        rates = []
        for levels in (
            [gate_confidence(i, length, CONFIDENCE) for i in range(length)],
            [CONFIDENCE] * length,
        ):
            reach = stats.norm.ppf((1 + np.array(levels)) / 2)
            rates.append(float((z > reach).any(axis=1).mean()))
        last = gate_confidence(length - 1, length, CONFIDENCE)
        yield f"| {length} | {last:.2%} | {rates[0]:.2%} | {rates[1]:.1%} |"


def _sampled(
    rng: np.random.Generator,
    accuracy: float,
    same: float,
    worse: float,
    num_samples: int,
    size: tuple[int, int],
) -> FloatArray:
    """Prompts of their own difficulty, the same one for both models in a share of them."""
    concentration = 0.8
    first, other = (
        rng.beta(concentration * accuracy, concentration * (1 - accuracy), size) for _ in range(2)
    )
    second = np.where(rng.random(size) < same, first, other) * (1 - worse / accuracy)
    answers = [rng.binomial(num_samples, chance) / num_samples for chance in (first, second)]
    return np.asarray(answers[1] - answers[0])


def _cells(rates: list[float], decimals: int) -> str:
    return " | ".join(f"{rate:.{decimals}%}" for rate in rates)


def page() -> str:
    """Return the results as Markdown."""
    settings = [Setting(accuracy=a, correlation=r) for a in ACCURACIES for r in CORRELATIONS]
    tests = " | ".join(TESTS)
    lines = [
        "# The gate: who passes",
        "",
        f"Written by `python -m benchmarks.gate_proof --write`. Margin {MARGIN:g}, intervals of "
        f"{CONFIDENCE:.0%}, planned with {POWER:.0%} power. Goals: a candidate that is two points "
        "worse passes in at most 5%, an equal one in at least 80%.",
        "",
        "## Share and correlation known",
        "",
        f"{NUM_PAIRS:,} pairs per row (percentiles: 2,000). Left the candidate that is two points "
        "worse, right the equal one.",
        "",
        f"| right | correlation | prompts | {tests} | {tests} |",
        f"|---|---|---:{'|---:' * 2 * len(TESTS)}|",
        *known(settings),
        "",
        f"## The number from a pilot of {PILOT} prompts",
        "",
        f"{NUM_PILOT_PAIRS:,} pairs per row, each with a pilot of its own; the gate's test.",
        "",
        "| right | correlation | prompts if known | planned, median | two points worse | equal |",
        "|---|---|---:|---:|---:|---:|",
        *by_pilot(settings),
        "",
        "## Four samples per prompt",
        "",
        f"{NUM_SAMPLED_PAIRS:,} pairs per row; prompts of their own difficulty (a beta "
        "distribution), the same for both models in the share given; the test of shares.",
        "",
        "| right | same difficulty | prompts | two points worse | equal |",
        "|---|---|---:|---:|---:|",
        *sampled(),
        "",
        "## Four samples per prompt, rare whole failures",
        "",
        f"{NUM_RARE_PAIRS:,} pairs per row; the candidate fails with every sample of some prompts, "
        "two points in all, and elsewhere its answers are those of the aligned model, drawn again "
        "on the share of prompts given. How many pass.",
        "",
        "| drawn again | prompts | gate | Student |",
        "|---:|---:|---:|---:|",
        *rare(),
        "",
        "## Several candidates in turn",
        "",
        f"{NUM_PAIRS:,} sequences per row, of candidates that are all two points worse (0.7 right, "
        "correlation 0.8, each with noise of its own). How many sequences let one pass: by the "
        "gate, whose first candidate has the full confidence and the later ones share as much "
        "again, and with the full confidence for each.",
        "",
        "| candidates | confidence of the later ones | gate | undivided |",
        "|---:|---:|---:|---:|",
        *in_turn(),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help=f"into {RESULTS.name}")
    arguments = parser.parse_args()
    text = page()
    if arguments.write:
        old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
        said = old.partition("## What it says")
        RESULTS.write_text(text + "\n" + "".join(said[1:]), encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
