"""What is counted as a hit of a verdict, and that seeds on one initial model share no prompt."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.trajectory_laboratory import (
    SMALL,
    TRAININGS,
    BranchSettings,
    asked,
    targets_of,
)
from benchmarks.trajectory_laboratory_tables import COMMENT, outcome, with_comment, written
from expo_ray.lab.data import eval_prompts, requests_for
from expo_ray.lab.settings import LabSettings

ERRORS = {"line": {"1.25": 0.8, "2": 1.2, "end": 1.5}, "pair": {"1.25": 0.97, "2": 0.9, "end": 2.0}}


def part(
    decision: str, forecast: str | None = None, horizon: float | None = None
) -> dict[str, Any]:
    verdict = {"decision": decision, "forecast": forecast, "horizon": horizon}
    return {"verdict": verdict, "errors": ERRORS}


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (("extrapolate", "line", 1.25), "kept"),
        (("extrapolate", "line", 2.0), "broken"),
        (("extrapolate", "line", 4.0), "broken"),  # at 2, as far as the training goes
        (("extrapolate", "pair", 3.0), "kept"),
        (("keep",), "missed"),  # the line would have come 20% nearer
        (("unknown",), "unknown"),
    ],
)
def test_a_promise_is_looked_at_where_it_was_made(verdict: tuple[Any, ...], expected: str) -> None:
    assert outcome(part(*verdict)) == expected


def test_to_keep_is_right_where_no_fit_gains_what_a_verdict_asks() -> None:
    found = part("keep") | {"errors": {"line": {"1.25": 0.96}}}
    assert outcome(found) == "right"


def test_a_checkpoint_stands_for_a_horizon_that_it_nearly_meets() -> None:
    steps = [0.0, 10, 20, 26, 41, 100]
    assert targets_of(steps, 3) == {"1.25": 3, "2": 4, "end": 5}


def test_trainings_on_one_initial_model_share_its_evaluation_prompts() -> None:
    initial = LabSettings(seed=100, **SMALL)
    first, second = (BranchSettings(seed=s, initial_seed=100, **SMALL) for s in (100, 103))
    assert eval_prompts(initial) == eval_prompts(first) == eval_prompts(second)
    assert requests_for(initial, "aligned") == requests_for(second, "aligned")
    assert first.derive_seed("aligned-pairs") != second.derive_seed("aligned-pairs")


def test_each_method_trains_every_seed_once_with_the_rates_in_turn() -> None:
    found = list(asked([100, 101], ["dpo", "grpo"]))
    assert found == [
        (100, "dpo, cosine rate"),
        (101, "dpo, constant rate"),
        (100, "grpo, cosine rate"),
        (101, "grpo, constant rate"),
    ]
    assert {name for _, name in found} == set(TRAININGS)


def test_the_tables_count_trainings_by_share() -> None:
    truths = {"truth_known": 3.0, "truths": {"line": 4.0}, "truth_promised": None}
    one = part("keep") | truths | {"share": 0.5}
    row = {
        **{"seed": 1, "training": "dpo", "num_steps": 80, "num_checkpoints": 41},
        **{"truth_initial": 1.0, "truth_last": 4.0, "straightness": 0.5, "r2_line": 0.9},
        "parts": [one],
    }
    text = written([row, row | {"seed": 2}])
    assert "| dpo | 50% | 0 | 0 | 0 | 2 | 0 |" in text
    assert "| line | 1.50 (0 of 2) |" in text
    assert "| dpo | 1.00 | 4.00 | 2 of 2 | 0.50 | 0.90 |" in text
    assert "| the whole training | +1.00 ± 0.00 (2, 2 of 2) |" in text
    assert "| as the verdict says | +0.00 ± 0.00 (0, 0 of 2) |" in text
    assert "| line | +1.00 ± 0.00 (2, 2 of 2) |" in text


def test_methods_have_tables_of_their_own_and_a_comment_outlives_them() -> None:
    parts = [part("keep") | {"truth_known": 3.0, "truths": {}, "truth_promised": 0.0, "share": 0.5}]
    row = {
        **{"seed": 1, "num_steps": 80, "num_checkpoints": 41, "parts": parts},
        **{"truth_initial": 1.0, "truth_last": 4.0, "straightness": 0.5, "r2_line": 0.9},
    }
    text = written([row | {"training": f"{name}, cosine rate"} for name in ("dpo", "grpo")])
    assert "## grpo: which fit" in text
    assert text.count("| as the verdict says | -3.00 ± nan (0, 0 of 1) |") == 2
    before = f"old tables{COMMENT}\nIt learns.\n"
    assert with_comment(text, before) == f"{text}{COMMENT}\nIt learns.\n"
    assert with_comment(text, "old tables") == text
