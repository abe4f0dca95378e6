from __future__ import annotations

import numpy as np
import pytest

from expo_ray.selection import SelectionSettings
from expo_ray.selection.bootstrap import Estimate, bootstrap_mean
from expo_ray.selection.guard_findings import Guard
from expo_ray.selection.heldout_sequence import Confirmation, confirm_in_sequence

SETTINGS = SelectionSettings(num_resamples=1000)


def fires(alpha: float) -> Guard:
    return Guard(
        name="truncation-rate",
        alpha=alpha,
        split="heldout",
        value=0.5,
        ci_low=0.4,
        ci_high=0.6,
        p_value=0.0,
        threshold=0.1,
        num_prompts=40,
        state="fired",
        fired=True,
        is_beyond=True,
        reason="half of the responses run into the token limit",
    )


def run(
    gains: dict[float, float],
    stopped: tuple[float, ...] = (),
    num_prompts: int = 40,
    **settings: float,
) -> list[Confirmation]:
    rng = np.random.default_rng(0)

    def measure(alpha: float) -> tuple[Estimate, list[Guard]]:
        values = rng.normal(0, 1, num_prompts)
        values += gains[alpha] - values.mean() if num_prompts else 0.0
        found = bootstrap_mean(values, num_resamples=1000, seed=0)
        return found, [fires(alpha)] if alpha in stopped else []

    rules = SETTINGS.model_copy(update=settings)
    return confirm_in_sequence(list(gains), measure, rules)[0]


def outcomes(tested: list[Confirmation]) -> list[tuple[float, str]]:
    return [(one.alpha, one.outcome) for one in tested]


def test_the_first_one_that_is_confirmed_ends_it() -> None:
    assert outcomes(run({2.0: 1.0, 1.0: 1.0})) == [(2.0, "confirmed")]


def test_after_a_stopped_gain_the_next_smaller_one_has_its_turn() -> None:
    tested = run({2.0: 1.0, 1.0: 0.8, 0.5: 0.6}, stopped=(2.0,))
    assert outcomes(tested) == [(2.0, "stopped"), (1.0, "confirmed")]
    assert [one.level for one in tested] == pytest.approx([0.05, 0.05])
    assert tested[0].stopped_by == ("truncation-rate",)


def test_nothing_is_left_after_a_gain_that_is_not_confirmed() -> None:
    assert outcomes(run({2.0: 0.1, 1.0: 0.8})) == [(2.0, "not-confirmed")]
    # A guard alone passes nothing on.
    assert outcomes(run({2.0: 0.1, 1.0: 0.8}, stopped=(2.0,))) == [(2.0, "not-confirmed")]


def test_a_reserve_is_for_the_next_one() -> None:
    tested = run({2.0: 0.1, 1.0: 0.8}, heldout_reserve=0.2)
    assert outcomes(tested) == [(2.0, "not-confirmed"), (1.0, "confirmed")]
    assert [one.level for one in tested] == pytest.approx([0.04, 0.01])
    passed = run({2.0: 1.0, 1.0: 0.8}, stopped=(2.0,), heldout_reserve=0.2)
    assert [one.level for one in passed] == pytest.approx([0.04, 0.05])


@pytest.mark.parametrize(
    ("gains", "stopped", "reserve", "asked"),
    [
        ((1.0, 0.8), (), 0.0, [0, 1]),
        ((1.0, 0.8), (0,), 0.0, [1]),
        ((0.1, 0.8), (), 0.0, []),
        ((1.0, 0.1), (0,), 0.0, []),
        # Significant at 5%, and not at the 2.5% that a reserve leaves the first one.
        ((2.1, 9.0), (), 0.5, [1]),
    ],
)
def test_sets_are_asked_of_those_alone_who_would_be_confirmed(
    gains: tuple[float, float], stopped: tuple[int, ...], reserve: float, asked: list[int]
) -> None:
    rules = SETTINGS.model_copy(update={"heldout_reserve": reserve})
    seen: list[float] = []

    def measure(alpha: float) -> tuple[Estimate, list[Guard]]:
        scale = 1.0 if reserve else 6.0
        found = _Normal.of(scale * gains[int(alpha)])
        return found, [fires(alpha)] if alpha in stopped else []

    def ask_sets(alpha: float) -> list[Guard]:
        seen.append(alpha)
        return [fires(alpha)]

    tested, guards = confirm_in_sequence([0, 1], measure, rules, ask_sets=ask_sets)
    assert seen == asked
    assert tested[-1].outcome != "confirmed"
    assert len(guards) == len(seen) + sum(one.alpha in stopped for one in tested)


def test_without_answers_it_waits() -> None:
    assert len(run({2.0: 1.0, 1.0: 1.0}, num_prompts=0, heldout_reserve=0.5)) == 1


@pytest.mark.parametrize("reserve", [0.0, 0.2])
@pytest.mark.parametrize(
    ("gains", "fire"),
    [
        ((0.0, 0.0, 0.0), (0.5, 0.5, 0.0)),
        ((9.0, 0.0, 0.0), (1.0, 0.5, 0.0)),  # the first one gains and is always stopped
        ((9.0, 9.0, 0.0), (1.0, 1.0, 0.0)),
    ],
)
def test_the_family_wise_error_holds(
    gains: tuple[float, ...], fire: tuple[float, ...], reserve: float
) -> None:
    """Gains in standard errors, correlated as on the same prompts; how often guards fire."""
    rng = np.random.default_rng(5)
    rules = SETTINGS.model_copy(update={"heldout_reserve": reserve})
    false, runs = 0, 1500
    for _ in range(runs):
        shared = rng.normal()
        seen = [g + 0.8 * shared + 0.6 * rng.normal() for g in gains]
        guarded = list(rng.random(len(gains)) < fire)

        def measure(
            alpha: float, seen: list[float] = seen, guarded: list[bool] = guarded
        ) -> tuple[Estimate, list[Guard]]:
            i = int(alpha)
            return _Normal.of(seen[i]), [fires(alpha)] if guarded[i] else []

        tested, _ = confirm_in_sequence(range(len(gains)), measure, rules)
        chosen = tested[-1]
        false += chosen.outcome == "confirmed" and gains[int(chosen.alpha)] == 0
    # Two-sided 5%: 2.5% in this direction, and three standard errors of the simulation.
    assert false / runs <= 0.025 + 3 * np.sqrt(0.025 * 0.975 / runs)


class _Normal(Estimate):
    """A mean whose p-value is that of the normal distribution."""

    @staticmethod
    def of(z: float) -> _Normal:
        return _Normal(mean=z, num_values=100, sorted_means=np.empty(0), standard_error=1.0)

    def p_value(self, null: float = 0.0) -> float:
        from scipy import stats

        return float(2 * stats.norm.sf(abs((self.mean or 0.0) - null)))
