"""Races on to the end: held-out prompts, a gate, and the recall of what was dropped.

Rewards are those of `tests/selection/curves.py`, on tuning and held-out prompts alike. The gate is
on right and wrong answers of its own, each candidate's drawn apart: what some candidate passes by
mistake adds up most where they do not resemble each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from expo_ray.selection import SelectionSettings
from expo_ray.selection.bootstrap import Estimate
from expo_ray.selection.candidates import estimate_mean
from expo_ray.selection.gates import Scores, check_gate, gate_confidence
from expo_ray.selection.guard_findings import Guard
from expo_ray.selection.heldout_sequence import Confirmation, confirm_in_sequence
from expo_ray.selection.recall import may_be_recalled, recall, to_recall
from expo_ray.selection.search import SearchResult, search_alphas
from tests.selection.curves import GRID, SimulatedRewards, choose_in_order

MARGIN = 0.05
NUM_GATE = 1000
RULES = SelectionSettings(
    strategy="racing", num_resamples=1000, no_worse_than={"sums": MARGIN}, max_length_ratio=None
)


_NOT_ASKED = estimate_mean(np.empty(0), RULES)


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """What candidates truly gain in reward, in standard deviations of it, and lose at the gate."""

    name: str
    gains: Callable[[float], float]
    losses: Callable[[float], float]

    def is_false_gain(self, alpha: float | None) -> bool:
        """Return whether a choice claims a gain that is none."""
        return alpha is not None and self.gains(alpha) <= 0

    def is_false_pass(self, alpha: float | None) -> bool:
        """Return whether a choice loses what the gate must keep."""
        return alpha is not None and self.losses(alpha) >= MARGIN


SCENARIOS = (
    Scenario(name="all gain, all lose the margin", gains=lambda a: 4 * a, losses=lambda a: MARGIN),
    Scenario(
        name="all gain, the boldest three lose twice the margin",
        gains=lambda a: 4 * a,
        losses=lambda a: 2 * MARGIN if a > 0.25 else 0.0,
    ),
    Scenario(
        name="the boldest gains and loses twice the margin, the others do not gain",
        gains=lambda a: 2.0 if a == GRID[-1] else 0.0,
        losses=lambda a: 2 * MARGIN if a == GRID[-1] else 0.0,
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """What came of one race, or of one full grid."""

    chosen: float | None
    search: SearchResult | None = None


class Run:
    """Answers of all candidates to all prompts, of which a race sees those that it asks for."""

    def __init__(self, scenario: Scenario, *, num_prompts: int, seed: int) -> None:
        both = SimulatedRewards(
            scenario.gains, alphas=GRID, num_prompts=2 * num_prompts, noise=1.5, seed=seed
        )
        self._heldout = {a: rewards[num_prompts:] for a, rewards in both.rewards.items()}
        both.prompts = both.prompts[:num_prompts]
        both.rewards = {a: rewards[:num_prompts] for a, rewards in both.rewards.items()}
        self._tuning = both
        rng = np.random.default_rng([seed, 1])
        right = rng.random(NUM_GATE) < 0.5
        self._estimates: dict[float, Estimate] = {}
        self._gates = {a: _scores(rng, right, scenario.losses(a)) for a in GRID}

    def full(self) -> Ending:
        """Choose where every candidate has answered everything."""
        order = choose_in_order(self._tuning.rewards, RULES, {})
        return Ending(chosen=_chosen(self._confirm(order, len(order))) if order else None)

    def race(self) -> Ending:
        """Race, and recall what was dropped as a run does."""
        prompts = self._tuning.prompts
        search = search_alphas(self._tuning, prompts, alphas=GRID, settings=RULES)
        asked: set[float] = set()
        order = self._order(search)
        while order:
            num_candidates = len(order) + len(may_be_recalled(search, order[0]))
            sequence = self._confirm(order, num_candidates, asked)
            found = {"heldout_sequence": [one.as_dict() for one in sequence]}
            dropped = to_recall(search, found)
            if dropped is not None:
                search = recall(search, dropped, found)
                order = self._order(search)
            elif sequence[-1].num_pairs == 0:
                asked.add(sequence[-1].alpha)
            else:
                return Ending(chosen=_chosen(sequence), search=search)
        return Ending(chosen=None, search=search)

    def _order(self, search: SearchResult) -> list[float]:
        seen = {a: self._tuning.rewards[a][:n] for a, n in search.num_answered.items()}
        return choose_in_order(seen, RULES, search.dropped, first=search.first)

    def _confirm(
        self, order: Sequence[float], num_candidates: int, asked: set[float] | None = None
    ) -> list[Confirmation]:
        """Spend held-out answers in this order; those not asked yet have none."""

        def measure(alpha: float) -> tuple[Estimate, Sequence[Guard]]:
            is_there = asked is None or alpha in asked
            return self._estimate(alpha) if is_there else _NOT_ASKED, ()

        def ask_sets(alpha: float) -> Sequence[Guard]:
            level = gate_confidence(order.index(alpha), num_candidates, RULES.confidence)
            rules = RULES.model_copy(update={"confidence": level})
            guard = check_gate(self._gates[alpha], alpha, rules)[1]
            return () if guard is None else (guard,)

        return confirm_in_sequence(order, measure, RULES, ask_sets=ask_sets)[0]

    def _estimate(self, alpha: float) -> Estimate:
        if alpha not in self._estimates:
            differences = self._heldout[alpha] - self._heldout[0.0]
            self._estimates[alpha] = estimate_mean(differences, RULES)
        return self._estimates[alpha]


def _scores(rng: np.random.Generator, right: np.ndarray, loss: float) -> Scores:
    """Draw a candidate that differs on a fifth of the prompts and loses so much on average."""
    # Of right answers a share turns wrong, of wrong ones a smaller one right.
    turned = rng.random(right.size)
    kept = np.where(right, turned >= 0.2 + loss, turned < 0.2 - loss)
    return Scores(
        name="sums",
        prompts="sums",
        reward_model="0-check-number",
        aligned=right.astype(np.float64),
        candidate=kept.astype(np.float64),
    )


def _chosen(sequence: Sequence[Confirmation]) -> float | None:
    return sequence[-1].alpha if sequence[-1].outcome == "confirmed" else None


def describe(scenario: Scenario, cases: Sequence[tuple[Ending, Ending]]) -> str:
    """Return what came of pairs of a race and its full grid, in a line.

    Args:
        scenario: Of the cases.
        cases: The race first.
    """
    raced, full = zip(*cases, strict=True)
    searches = [one.search for one in raced if one.search is not None]
    figures: Mapping[str, float] = {
        "same choice": np.mean([r.chosen == f.chosen for r, f in cases]),
        "false gains (race)": np.mean([scenario.is_false_gain(one.chosen) for one in raced]),
        "(grid)": np.mean([scenario.is_false_gain(one.chosen) for one in full]),
        "false passes (race)": np.mean([scenario.is_false_pass(one.chosen) for one in raced]),
        "(grid) ": np.mean([scenario.is_false_pass(one.chosen) for one in full]),
        "some choice (race)": np.mean([one.chosen is not None for one in raced]),
        "(grid)  ": np.mean([one.chosen is not None for one in full]),
        "of the grid's answers on tuning prompts": np.mean([one.share for one in searches]),
    }
    told = ", ".join(f"{name.strip()} {value:.1%}" for name, value in figures.items())
    recalled = np.mean([len(one.recalled) for one in searches])
    return f"{scenario.name}: {len(cases)} races, {told}, {recalled:.2f} recalled each"
