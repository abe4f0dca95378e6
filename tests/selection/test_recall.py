"""What a race dropped has its turn where guards or gates stop those ahead of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from expo_ray.selection import SelectionSettings, choose_alpha
from expo_ray.selection.gates import Scores
from expo_ray.selection.measured_tables import measure_tables
from expo_ray.selection.recall import recall, to_recall
from expo_ray.selection.search import Measured, SearchResult, search_alphas
from tests.selection.tables import make_rows, responses_of, rewards_of

NUM_TUNING, NUM_HELDOUT = 100, 60
GAINS = {0.0: 0.0, 0.25: 0.4, 0.5: 0.8, 1.0: 2.0, 2.0: 3.0}
RULES = SelectionSettings(
    num_resamples=1000, strategy="racing", no_worse_than={"sums": 0.05}, max_length_ratio=None
)


class Bench:
    """Rewards of all; what is asked of them is noted."""

    def __init__(self, gains: Mapping[float, float] = GAINS) -> None:
        rng = np.random.default_rng(0)
        num = NUM_TUNING + NUM_HELDOUT
        base = rng.normal(0, 1, num)
        self.alphas = tuple(gains)
        rewards = {a: (base + g + rng.normal(0, 0.5 * (a > 0), num)) for a, g in gains.items()}
        self.rows = make_rows({a: list(map(float, r)) for a, r in rewards.items()},
                              num_tuning=NUM_TUNING)  # fmt: skip
        self.prompts = [f"p{i:04d}" for i in range(NUM_TUNING)]
        self.asked = dict.fromkeys(gains, 0)
        self.confirmed = {0.0}

    def __call__(self, alphas: Any, prompts: Any) -> Measured:
        for alpha in alphas:
            self.asked[alpha] = max(self.asked[alpha], len(prompts))
        rows = [r for r in self.rows if r["alpha"] in alphas]
        return measure_tables(responses_of(rows), rewards_of(rows), alphas=alphas,
                              prompts=prompts, settings=RULES)  # fmt: skip

    def choose(self, search: SearchResult, lost: Mapping[float, float]) -> dict[str, Any]:
        """Choose by what is answered; sums are lost by `lost`, and few of those gained."""

        def sums(alpha: float) -> list[Scores]:
            right = np.arange(1000) % 2 == 0
            kept = right & (np.arange(1000) >= 1000 * lost[alpha])
            return [Scores(name="sums", prompts="sums", reward_model="0-check-number",
                           aligned=right.astype(float), candidate=kept.astype(float))]  # fmt: skip

        seen = dict(search.num_answered)
        rows = [
            r
            for r in self.rows
            if (r["split"] == "tuning" and int(r["prompt_id"][1:]) < seen[r["alpha"]])
            or (r["split"] == "heldout" and r["alpha"] in self.confirmed)
        ]
        return choose_alpha(responses_of(rows), rewards_of(rows), settings=RULES, search=search,
                            prompt_sets=sums)  # fmt: skip

    def run(self, lost: Mapping[float, float]) -> tuple[dict[str, Any], SearchResult]:
        """Search and confirm as a run does."""
        grid = [alpha for alpha in self.alphas if alpha]
        search = search_alphas(self, self.prompts, alphas=grid, settings=RULES)
        while True:
            found = self.choose(search, lost)
            dropped = to_recall(search, found)
            if dropped is not None:
                self((0.0, dropped), self.prompts)
                search = recall(search, dropped, found)
            elif found["tried_alpha"] in {None, *self.confirmed}:
                return found, search
            else:
                self.confirmed.add(found["tried_alpha"])


def test_a_gate_that_stops_the_leaders_calls_back_what_the_race_dropped() -> None:
    bench = Bench()
    found, search = bench.run(dict.fromkeys(GAINS, 0.4) | {0.5: 0.02, 0.25: 0.0})
    assert found["best_alpha"] == 0.5
    assert [one["alpha"] for one in found["heldout_sequence"]] == [2.0, 1.0, 0.5]
    assert [gate["verdict"] for gate in found["gates"]] == ["worse", "worse", "no-worse"]
    # Each later one was asked as if all that the race had dropped were to follow, 0.25 too.
    levels = [gate["confidence"] for gate in found["gates"]]
    assert levels == pytest.approx([0.95, *[1 - 0.05 / 3] * 2])
    # 0.25 was dropped and is not needed: it answers nothing more.
    assert search.recalled == (1.0, 0.5) and set(search.dropped) == {0.25}
    assert bench.asked[0.5] == NUM_TUNING > bench.asked[0.25]
    told = found["search"]
    assert told["recalled"] == [1.0, 0.5]
    assert told["rounds"][-1] == {
        "round": 3, "alphas": [0.5], "num_prompts": NUM_TUNING, "dropped": []
    }  # fmt: skip
    recalled = next(c for c in found["candidates"] if c["alpha"] == 0.5)
    assert (recalled["num_pairs"], recalled["dropped"]) == (NUM_TUNING, None)


def test_nobody_is_called_back_where_the_leader_is_confirmed() -> None:
    bench = Bench()
    found, search = bench.run(dict.fromkeys(GAINS, 0.0))
    assert (found["best_alpha"], search.recalled, search.first) == (2.0, (), None)
    assert search.spared == frozenset({0.25, 0.5, 1.0})


def test_a_gate_is_as_strict_when_first_asked_as_in_the_end() -> None:
    bench = Bench()
    asked: dict[float, set[float]] = {}
    choose = bench.choose

    def noting(search: SearchResult, lost: Mapping[float, float]) -> dict[str, Any]:
        found = choose(search, lost)
        for gate in found["gates"]:
            asked.setdefault(gate["alpha"], set()).add(round(gate["confidence"], 9))
        return found

    bench.choose = noting  # type: ignore[method-assign]
    bench.run(dict.fromkeys(GAINS, 0.4))
    assert set(asked) == {2.0, 1.0, 0.5, 0.25}
    assert all(len(levels) == 1 for levels in asked.values())


def test_all_are_called_back_where_all_lose_the_gate_and_then_it_ends() -> None:
    found, search = Bench().run(dict.fromkeys(GAINS, 0.4))
    assert found["verdict"] == "keep-aligned"
    assert search.recalled == (1.0, 0.5, 0.25) and not search.dropped
    assert [one["outcome"] for one in found["heldout_sequence"]] == ["stopped"] * 4
    levels = [gate["confidence"] for gate in found["gates"]]
    assert levels == pytest.approx([0.95, *[1 - 0.05 / 3] * 3])


def test_who_was_asked_first_stays_in_the_sequence() -> None:
    # Once it is measured on all prompts, 1.9 would be chosen before 2: it had been dropped.
    bench = Bench({0.0: 0.0, 1.9: 3.0, 2.0: 3.0})
    answered = dict.fromkeys(bench.alphas, NUM_TUNING)
    search = SearchResult(
        strategy="racing", num_tuning=NUM_TUNING, num_answered=answered, dropped={}, looks=(),
        recalled=(1.9,), first=2.0,
    )  # fmt: skip
    bench.confirmed = {0.0, 1.9, 2.0}
    found = bench.choose(search, {1.9: 0.0, 2.0: 0.4})
    assert [one["alpha"] for one in found["heldout_sequence"]] == [2.0, 1.9]
    assert found["best_alpha"] == 1.9
