"""What comes next fits what happened."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expo_ray.reports import write_report
from expo_ray.reports.figures import reward_curve
from expo_ray.reports.provenance import facts, input_files, next_steps
from expo_ray.reports.run_files import RunFiles
from expo_ray.reports.tries import step_back
from expo_ray.reports.wording import standing
from tests.reports.page import Page
from tests.reports.run_directory import RunDirectory
from tests.reports.test_gates import GATE
from tests.reports.test_search_page import LINE

LOST = {"verdict": "worse"}


def one(alpha: float, outcome: str) -> dict[str, Any]:
    """A step of the held-out sequence."""
    return {
        "alpha": alpha, "gain": 0.3, "ci_low": 0.1, "ci_high": 0.5, "num_pairs": 100,
        "p_value": 0.001, "level": 0.05, "outcome": outcome,
        "is_significant": outcome != "not-confirmed",
        "stopped_by": ["prompt-echo"] if outcome == "stopped" else [],
    }  # fmt: skip


def commands(tmp_path: Path, verdict: str = "keep-aligned", **changes: Any) -> list[str]:
    run = RunDirectory(tmp_path / "run")
    run.write_all()
    run.write_selection(verdict=verdict, best_alpha=3.0, **changes)
    steps = next_steps(RunFiles.read(run.path, tables=False))
    return [f"{step.what}: {step.command}" for step in steps]


def test_after_a_stopped_alpha_the_smaller_ones_are_tried(tmp_path: Path) -> None:
    found = commands(tmp_path, heldout_sequence=[one(2.0, "stopped"), one(1.0, "not-confirmed")])
    [again] = [text for text in found if "--set" in text]
    assert "Guards stopped alpha 2 on held-out prompts" in again
    assert "alphas=[0.1, 0.3, 0.5, 1]" in again
    below = commands(tmp_path, heldout_sequence=[one(0.1, "stopped")])
    assert "alphas=[0.025, 0.05, 0.075]" in below[-1]


def test_a_gate_that_cannot_tell_is_asked_how_many_would(tmp_path: Path) -> None:
    untold = {**GATE, "alpha": 1.0, "verdict": "cannot-tell", "margin": 0.05}
    untold["confidence"] = 0.975
    worse = {**untold, "alpha": 2.0, "verdict": "worse"}
    sequence = [one(a, "stopped") | {"stopped_by": ["no-worse-than gsm"]} for a in (2.0, 1.0)]
    found = commands(tmp_path, heldout_sequence=sequence, gates=[worse, untold])
    plan, again = found[-2:]
    assert "cannot tell whether alpha 1 keeps the gate gsm" in plan
    rewards = tmp_path / "run" / "prompt_sets" / "gsm" / "rewards" / "0-check-number"
    assert f"plan-prompts {rewards}/alpha-0.parquet {rewards}/alpha-1.parquet --margin 0.05" in plan
    assert "--margin 0.05 --confidence 0.975" in plan
    assert "Gates stopped alpha 2, 1 on held-out prompts" in again
    main = {**untold, "prompts": "main", "name": "1-check"}
    found = commands(tmp_path, heldout_sequence=sequence, gates=[main])
    assert f"{tmp_path}/run/rewards/0-check-number/alpha-1.parquet" in found[-2]
    lost = commands(tmp_path, heldout_sequence=sequence, gates=[worse, {**untold, **LOST}])
    assert not any("plan-prompts" in text for text in lost)
    both = [{**sequence[0], "stopped_by": ["prompt-echo"]}, sequence[1]]
    assert "Guards and gates stopped" in commands(tmp_path, heldout_sequence=both)[-1]


def test_a_gain_that_may_be_chance_asks_for_more_prompts(tmp_path: Path) -> None:
    [again] = [text for text in commands(tmp_path) if "--set" in text]
    assert "more prompts" in again and "alphas=[" in again


def test_commands_along_a_trajectory_name_it_and_no_pair(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.write_all()
    run.write_selection(verdict="extrapolate", best_alpha=3.0)
    file = run.path / "resolved.json"
    resolved = json.loads(file.read_text())
    along = {"file": "/runs/t.yaml", "fit": "weights", "weights": [0.25, 0.75]}
    recipe = {**resolved.get("recipe", {}), "trajectory": along}
    between = {"uri": "/runs/step-100", "files": []}
    file.write_text(json.dumps({**resolved, "recipe": recipe, "step 100": between}))
    read = RunFiles.read(run.path, tables=False)
    told = [step.command for step in next_steps(read)]
    flags = "--trajectory /runs/t.yaml --fit weights --weights 0.25,0.75"
    assert any(text.startswith(f"expo-ray extrapolate {flags} OUTPUT --alpha 3") for text in told)
    assert f"expo-ray serve {flags} --alpha 3" in told
    assert not any("--initial" in text for text in told)
    assert [role for role, *_ in input_files(read)] == ["initial", "step 100", "aligned"]
    assert not any(name.startswith("step 100") for name, _ in facts(read))


def losing(run: RunDirectory) -> list[dict[str, Any]]:
    found = run.write_selection(verdict="keep-aligned", best_alpha=3.0)["candidates"]
    return [
        c if c["alpha"] == 0 else {**c, "gain": -1.0, "gain_ci_low": -2.0, "gain_ci_high": -0.5}
        for c in found
    ]


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(-0.3, -0.2, "It may: "), (0.2, 0.3, "No: "), (-0.1, 0.2, "It cannot be told")],
)
def test_a_step_back_is_proposed_where_the_slope_says_so(
    low: float, high: float, words: str, tmp_path: Path
) -> None:
    run = RunDirectory(tmp_path / "run")
    run.write_all()
    line = {**LINE, "slope": (low + high) / 2, "ci_low": low, "ci_high": high}
    candidates = losing(run)
    selection = run.write_selection(
        verdict="keep-aligned", best_alpha=3.0, first_order=line, candidates=candidates
    )
    assert (step_back(selection) or "").startswith(words)
    steps = next_steps(RunFiles.read(run.path, tables=False))
    back = [step for step in steps if "step back may help" in step.what]
    assert bool(back) is (high < 0)
    if back:
        assert "alphas=[-0.5, -0.25, -0.1]" in back[0].command
    else:
        assert "alphas=[0.025, 0.05, 0.075]" in steps[-1].command
    tried = {**candidates[0], "alpha": -0.5, "gain": 0.4}
    told = step_back({**selection, "candidates": [tried, *candidates]})
    assert ("Tried were +0.4" in (told or "")) is (high < 0)


def test_where_the_aligned_model_is_cut_off_longer_answers_come_first(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.write_all()
    candidates = losing(run)
    candidates[0]["truncation_rate"] = 0.19
    run.write_selection(verdict="keep-aligned", best_alpha=3.0, candidates=candidates)
    steps = next_steps(RunFiles.read(run.path, tables=False))
    wanted = [step for step in steps if "max_tokens" in step.command]
    assert "19% of the aligned model's own answers" in wanted[0].what


def test_the_figure_shows_the_gains_of_the_table(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.write_all()
    selection = run.write_selection(verdict="extrapolate", best_alpha=3.0)
    # After a race means are over other prompts: the paired gain is what can be compared.
    raced = selection["candidates"][-1]
    raced |= {"gain": -0.123, "mean_reward": 98765.0, "num_pairs": 25}
    drawing = reward_curve(selection, (), None)
    assert "12: -0.123" in drawing.alt and "98765" not in drawing.alt


def test_held_out_guards_and_tests_stand_apart(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.write_all()
    guard = {
        "name": "prompt-echo", "alpha": 5.0, "split": "heldout", "value": 0.2, "threshold": 0.05,
        "ci_low": 0.1, "ci_high": 0.3, "p_value": 0.001, "num_prompts": 100, "state": "fired",
        "fired": True, "is_beyond": True, "reason": "20% of the responses restate the prompt",
    }  # fmt: skip
    doubt = {**guard, "split": "tuning", "state": "cannot-tell", "fired": False, "alpha": 3.0}
    selection = run.write_selection(
        verdict="extrapolate",
        best_alpha=3.0,
        guards=[guard, doubt],
        heldout_sequence=[one(5.0, "stopped"), one(3.0, "confirmed")],
        first_order=LINE,
    )
    text = Page(write_report(run.path)).text
    assert "Would a step back help? No: the slope at alpha 0 is +0.25" in text
    assert "On held-out prompts" in text and "On tuning prompts" not in text
    assert "Of 2 checks 1 cannot be told" in text
    assert "Held-out prompts, in their order" in text and "stopped: prompt-echo" in text
    # In the table of tuning prompts its name would be that of a guard on those.
    assert standing(selection, selection["candidates"][7]) == "stopped on held-out prompts"
