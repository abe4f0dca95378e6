"""What the report says of the search, of the straight line, of the cost and of what comes next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expo_ray.reports import write_report
from expo_ray.reports.costs import count_costs
from expo_ray.reports.run_files import RunFiles
from expo_ray.reports.wording import first_order, standing
from expo_ray.selection.race import look_sizes
from expo_ray.selection.search import search_alphas
from expo_ray.selection.settings import SelectionSettings
from tests.reports.page import Page
from tests.reports.run_directory import ALPHAS, RunDirectory
from tests.selection.curves import SimulatedRewards

LINE = {
    "slope": 0.25,
    "ci_low": 0.2,
    "ci_high": 0.3,
    "p_value": 0.0001,
    "fitted_to": [0.1, 0.3, 0.5],
    "num_prompts": 100,
    "holds_until": 1.0,
    "fails_at": 2.0,
    "cannot_tell": [],
    "tolerance": 0.2,
    "num_dropped": 0,
    "points": [
        {
            "alpha": alpha,
            "predicted": 0.25 * alpha,
            "departure": -0.03 * alpha**2,
            "departure_ci_low": -0.04 * alpha**2,
            "departure_ci_high": -0.02 * alpha**2,
            "answer": "holds" if alpha <= 1.0 else "fails",
        }
        for alpha in ALPHAS[1:]
    ],
}


@pytest.fixture(scope="module")
def race() -> dict[str, Any]:
    rewards = SimulatedRewards(
        lambda a: 0.6 * a - 0.1 * a**2, alphas=ALPHAS[1:], num_prompts=200, noise=1.0, seed=0
    )
    settings = SelectionSettings(strategy="racing")
    found = search_alphas(rewards, rewards.prompts, alphas=ALPHAS[1:], settings=settings)
    return found.as_dict()


def test_the_search_is_told_step_by_step(tmp_path: Path, race: dict[str, Any]) -> None:
    run = RunDirectory(tmp_path / "run")
    run.write_all()
    run.write_selection(verdict="extrapolate", best_alpha=3.0, search=race, first_order=LINE)
    (run.path / "serve_config.yaml").write_text("applications: []")
    page = Page(write_report(run.path))
    assert "Strategy racing: 9 candidates in 1 round" in page.text
    assert f"{race['tuning_answers'] / race['tuning_answers_full']:.0%} of the answers" in page.text
    assert "further answers would hardly change the choice" in page.text
    assert str(look_sizes(200)[0]) in page.text
    assert "+0.250 per unit of alpha" in page.text or "+0.25 per unit of alpha" in page.text
    assert "line holds, to a fifth, up to alpha 1 and fails at alpha 2." in page.text
    assert (run.path / "figures" / "first-order.svg").is_file()
    assert f"serve deploy {run.path / 'serve_config.yaml'}" in page.text
    assert "expo-ray extrapolate" in page.text and "OUTPUT --alpha 3" in page.text


def test_the_cost_is_what_was_answered(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.write_all()
    costs = count_costs(RunFiles.read(run.path))
    assert costs is not None
    assert costs.num_responses == costs.num_full == len(ALPHAS) * 200
    assert costs.completion_tokens == sum(int(np.sum(t)) for t in run.tokens.values())
    assert costs.prompt_tokens == 9 * costs.num_responses
    assert "What the choice cost" in Page(write_report(run.path)).text


def test_a_slope_that_noise_hides_is_not_judged() -> None:
    hidden = {**LINE, "ci_low": -0.1, "num_dropped": 3}
    selection = {"candidates": [{"gain": 0.2}], "first_order": hidden}
    text = first_order(selection)
    assert text is not None and "neither supported nor refuted" in text
    assert "before they were dropped" in text
    assert first_order({"candidates": []}) is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"holds_until": None, "fails_at": None, "cannot_tell": [0.1, 1.0, 3.0]},
            "At alpha 0.1, 1, 3 it cannot be told from 100 prompts whether it holds",
        ),
        (
            {"holds_until": 1.0, "fails_at": None, "cannot_tell": [3.0]},
            "The straight line holds, to a fifth, up to alpha 1. At alpha 3 it cannot be told",
        ),
        (
            {"holds_until": 3.0, "fails_at": None},
            "The straight line holds, to a fifth, up to alpha 3, the largest that was tried.",
        ),
        (
            {"holds_until": None, "fails_at": 3.0, "cannot_tell": [0.1, 1.0]},
            "The straight line fails at alpha 3. At alpha 0.1, 1 it cannot be told",
        ),
        (
            {"holds_until": None, "fails_at": 0.1},
            "The straight line fails at alpha 0.1, the smallest that was tried.",
        ),
    ],
)
def test_three_answers_about_the_line(changes: dict[str, Any], told: str) -> None:
    points = [{"alpha": alpha} for alpha in (0.1, 1.0, 3.0)]
    found = {**LINE, "points": points, **changes}
    text = first_order({"candidates": [{"gain": 0.2}], "first_order": found})
    assert text is not None and told in text
    old = {name: value for name, value in found.items() if name != "cannot_tell"}
    text = first_order({"candidates": [{"gain": 0.2}], "first_order": old})
    assert text is not None and "holds, to a fifth" not in text


def test_a_dropped_candidate_stands_as_dropped() -> None:
    selection = {"verdict": "extrapolate", "best_alpha": 1.0, "guards": []}
    candidate = {"alpha": 3.0, "dropped": "after 20 prompts", "gain_ci_low": 0.1}
    assert standing(selection, candidate) == "dropped after 20 prompts"
    candidate["dropped"] = "special-tokens on 25 prompts"
    assert standing(selection, candidate) == "dropped: special-tokens on 25 prompts"
    candidate["dropped"] = (
        "after 38 prompts further answers would hardly change the choice (gain so far -0.2)"
    )
    assert standing(selection, candidate) == (
        "dropped after 38 prompts: hardly to be chosen any more"
    )
