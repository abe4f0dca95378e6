"""Words and numbers: every verdict says what selection.json says, no more."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expo_ray.errors import ConfigError
from expo_ray.reports import summary_rows, verdict_sentence
from expo_ray.reports.html_report import write_report
from expo_ray.reports.wording import (
    batching_spread,
    decimals_for,
    format_alpha,
    number,
    p_value,
    percent,
    signed,
    standing,
)
from tests.reports.run_directory import RunDirectory


def candidate(alpha: float, gain: float = 0.0, /, **changes: Any) -> dict[str, Any]:
    return {
        "alpha": alpha, "num_pairs": 50, "num_errors": 0, "mean_reward": 1.0 + gain,
        "ci_low": 0.9, "ci_high": 1.1, "gain": gain, "gain_ci_low": gain - 0.1,
        "gain_ci_high": gain + 0.1, "mean_tokens": 20.0, "length_ratio": 1.0,
        "truncation_rate": 0.0, "collapsed": False, **changes,
    }  # fmt: skip


def selection(verdict: str, heldout: dict[str, Any] | None, **changes: Any) -> dict[str, Any]:
    return {
        "verdict": verdict,
        "best_alpha": 0.5 if verdict == "extrapolate" else 0.0,
        "candidates": [candidate(0.0), candidate(0.5, 0.3)],
        "guards": [],
        "heldout": heldout,
        **changes,
    }


def measured(gain: float, low: float, high: float, **changes: Any) -> dict[str, Any]:
    return {"alpha": 0.5, "gain": gain, "ci_low": low, "ci_high": high, "num_pairs": 50,
            "p_value": 0.021, **changes}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            selection("extrapolate", measured(0.25, 0.05, 0.45)),
            "Extrapolating to alpha 0.5 raised the mean reward by 0.250 (95% interval 0.050 to "
            "0.450, p = 0.021) over the aligned model on 50 held-out prompts.",
        ),
        (
            selection("extrapolate", None),
            "Extrapolating to alpha 0.5 was chosen on tuning prompts alone; no held-out prompts "
            "confirm it.",
        ),
        (
            selection("keep-aligned", measured(-0.012, -0.3, 0.27)),
            "Keep the aligned model: the best candidate, alpha 0.5, changed the mean reward by "
            "-0.012 (95% interval -0.300 to +0.270, p = 0.021) over the aligned model on 50 "
            "held-out prompts, which is not a proven gain.",
        ),
        (
            selection("keep-aligned", measured(0.25, 0.05, 0.45)),
            "Keep the aligned model: the best candidate, alpha 0.5, raised the mean reward by "
            "0.250 (95% interval 0.050 to 0.450, p = 0.021) over the aligned model on 50 "
            "held-out prompts, but did not pass every test.",
        ),
        (
            selection("keep-aligned", measured(0.0, 0.0, 0.0, alpha=0.0)),
            "Keep the aligned model: no candidate earned a comparison on held-out prompts.",
        ),
        (
            selection("keep-aligned", measured(1.0, None, None, p_value=None, num_pairs=1)),
            "Keep the aligned model: the best candidate, alpha 0.5, changed the mean reward by "
            "+1.000 (95% interval n/a) over the aligned model on 1 held-out prompts, which is "
            "not a proven gain.",
        ),
        (
            selection("extrapolate", measured(30.0, 12.0, 48.0), settings={"confidence": 0.99}),
            "Extrapolating to alpha 0.5 raised the mean reward by 30.0 (99% interval 12.0 to "
            "48.0, p = 0.021) over the aligned model on 50 held-out prompts.",
        ),
    ],
)
def test_verdicts_in_words(given: dict[str, Any], sentence: str) -> None:
    assert verdict_sentence(given) == sentence


def test_summary_rows_are_the_candidates(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    written = run.write_selection(verdict="extrapolate", best_alpha=3.0)
    columns, rows = summary_rows(tmp_path)
    assert columns == ["alpha", "reward", "gain", "95% interval", "tokens", "length", "cut off",
                       "standing"]  # fmt: skip
    assert [row[0] for row in rows] == ["0", "0.1", "0.3", "0.5", "1", "2", "3", "5", "8", "12"]
    for row, entry in zip(rows, written["candidates"], strict=True):
        assert row[1] == f"{entry['mean_reward']:.3f}"
        assert row[2] == ("" if entry["alpha"] == 0 else f"{entry['gain']:+.3f}")
    assert [row[-1] for row in rows][6] == "chosen"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "eligible"),
        ({"gain_ci_low": -0.1}, "not proven"),
        ({"eligible": False}, "not proven"),
        ({"gain_ci_low": -0.5, "gain_ci_high": -0.2}, "worse"),
        ({"collapsed": True}, "collapsed"),
        ({"gain": None, "gain_ci_low": None, "gain_ci_high": None}, "not measured"),
    ],
)
def test_standing(changes: dict[str, Any], words: str) -> None:
    given = selection("keep-aligned", None)
    assert standing(given, candidate(2.0, 0.3, **changes)) == words


def test_guards_that_fired_speak_before_all_else() -> None:
    guards = [
        {"name": "length_ratio", "alpha": 2.0, "fired": True},
        {"name": "length_ratio", "alpha": 2.0, "fired": True},
        {"name": "truncation", "alpha": 2.0, "fired": False},
        {"name": "truncation", "alpha": 0.5, "fired": True},
    ]
    given = selection("keep-aligned", None, guards=guards)
    assert standing(given, candidate(2.0, 0.3, collapsed=True)) == "length ratio"


@pytest.mark.parametrize(
    ("low", "high", "decimals"),
    [(0.1, 0.4, 3), (1.0, 4.0, 2), (10.0, 99.0, 1), (0.01, 0.02, 4), (1e-9, 2e-9, 6)],
)
def test_decimals_follow_the_gains(low: float, high: float, decimals: int) -> None:
    assert decimals_for(selection("extrapolate", measured(low, low, high))) == decimals


def test_numbers() -> None:
    assert [number(v, 2) for v in (-0.001, 1234.5, None, float("nan"))] == [
        "0.00", "1,234.50", "n/a", "n/a",
    ]  # fmt: skip
    assert [signed(v, 1) for v in (0.04, -0.04, 2.0, -2.0)] == ["+0.0", "+0.0", "+2.0", "-2.0"]
    assert [percent(v) for v in (0.0, 0.004, 0.0994, 0.1, 1.0, None)] == [
        "0%", "0.4%", "9.9%", "10%", "100%", "n/a",
    ]  # fmt: skip
    assert [p_value(v) for v in (0.0001, 0.0304, None)] == ["p < 0.001", "p = 0.030", ""]
    assert [format_alpha(a) for a in (0.3, 12.0, -0.5, -0.0)] == ["0.3", "12", "-0.5", "0"]


def test_the_spread_that_batching_causes_is_said_beside_the_gains() -> None:
    kept = selection("extrapolate", measured(0.25, 0.05, 0.45))
    assert batching_spread(kept) is None
    assert "up to 0.0031 (" in str(batching_spread({**kept, "measurement_spread": 0.00312}))
    assert "switched off" in str(batching_spread({**kept, "measurement_spread": None}))
    assert "no score" in str(batching_spread({**kept, "measurement_spread": 0.0}))


@pytest.mark.parametrize(
    "selection",
    [
        {"best_alpha": 0, "verdict": "keep-aligned", "candidates": 5},
        {"best_alpha": 0, "verdict": "keep-aligned", "candidates": [1]},
        {"best_alpha": 0, "verdict": "keep-aligned", "candidates": [{"alpha": "x"}]},
        {"best_alpha": "x", "verdict": [], "candidates": [{"alpha": 0.0}]},
    ],
)
def test_a_selection_in_another_form_is_refused(tmp_path: Path, selection: object) -> None:
    (tmp_path / "selection.json").write_text(json.dumps(selection))
    for read in (summary_rows, write_report):
        with pytest.raises(ConfigError):
            read(tmp_path)
