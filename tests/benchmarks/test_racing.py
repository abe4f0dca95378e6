"""Races replayed to the end: what was dropped is recalled where a gate stops the leaders."""

from __future__ import annotations

from benchmarks.recalled_races import SCENARIOS, Run, describe


def test_what_a_gate_stops_calls_back_what_was_dropped() -> None:
    _, scenario, _ = SCENARIOS
    run = Run(scenario, num_prompts=100, seed=3)
    raced = run.race()
    # The gate stops the three boldest; the two that keep it had been dropped for standing behind.
    assert raced.search is not None and len(raced.search.recalled) >= 2
    assert raced.chosen == run.full().chosen == 0.2
    line = describe(scenario, [(raced, run.full())])
    assert "1 races, same choice 100.0%" in line and "false passes (race) 0.0%, (grid) 0.0%" in line
