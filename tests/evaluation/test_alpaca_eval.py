from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from expo_ray.errors import TableError
from expo_ray.evaluation import alpaca_eval_metrics


def annotation(preference: object, output: str = "four") -> dict[str, Any]:
    return {
        "instruction": "Say four.",
        "output_1": "the baseline's",
        "output_2": output,
        "generator_1": "baseline",
        "generator_2": "model",
        "preference": preference,
    }


def write(folder: Path, rows: object) -> Path:
    path = folder / "annotations.json"
    path.write_text(rows if isinstance(rows, str) else json.dumps(rows))
    return path


@pytest.mark.parametrize("model", ["zephyr-7b-sft-full", "zephyr_0.05"])
def test_equals_the_published_leaderboard(published_data: Path, model: str) -> None:
    with (published_data / "alpaca_eval" / "leaderboard.csv").open() as file:
        published = next(row for row in csv.DictReader(file) if row[""] == model)
    annotations = published_data / "alpaca_eval" / "annotations"
    metrics = alpaca_eval_metrics(annotations / f"{model}.json")
    for name in ("n_wins", "n_wins_base", "n_draws", "n_total", "avg_length"):
        assert metrics[name] == int(published[name]), name  # type: ignore[literal-required]
    for name in ("win_rate", "standard_error", "discrete_win_rate"):
        # The published preferences are themselves rounded to ten digits.
        value = metrics[name]  # type: ignore[literal-required]
        assert value == pytest.approx(float(published[name]), abs=1e-9), name
    assert metrics["n_missing"] == 0


def test_by_hand(tmp_path: Path) -> None:
    rows = [annotation(2.0, "abc"), annotation(1.5, "abcd"), annotation(1.25, "abcd")]
    metrics = alpaca_eval_metrics(write(tmp_path, [*rows, annotation(None), annotation(0)]))
    assert metrics["win_rate"] == pytest.approx(100 * 2.25 / 4)
    assert (metrics["n_wins"], metrics["n_wins_base"], metrics["n_draws"]) == (1, 1, 2)
    assert (metrics["n_total"], metrics["n_missing"]) == (4, 1)
    assert metrics["discrete_win_rate"] == 50.0
    # Scores 1, .5, .25, .5: sample variance (.4375**2 + .0625**2 * 2 + .3125**2) / 3.
    assert metrics["standard_error"] == pytest.approx(100 * ((0.296875 / 3) ** 0.5) / 2)
    assert metrics["avg_length"] == 3
    assert (metrics["model"], metrics["baseline"]) == ("model", "baseline")


def test_one_annotation(tmp_path: Path) -> None:
    metrics = alpaca_eval_metrics(write(tmp_path, [annotation(2)]))
    assert (metrics["win_rate"], metrics["standard_error"]) == (100, 0)


@pytest.mark.parametrize(
    ("rows", "message", "where"),
    [
        ("[{", "not JSON", "annotations.json"),
        ([], "no annotations", "annotations.json"),
        ({"preference": 1}, "no annotations", "annotations.json"),
        ([annotation(1), "text"], "not an object", "row 1"),
        ([annotation(1), annotation(2.5)], "out of range", "row 1"),
        ([annotation(1), annotation(0.5)], "out of range", "row 1"),
        ([annotation(True)], "out of range", "row 0"),
        ([annotation("2")], "out of range", "row 0"),
        ([annotation(1), {"output_2": "x"}], "no preference", "row 1"),
        ([annotation(1), annotation(1) | {"output_2": None}], "no output_2", "row 1"),
        ([annotation(1), annotation(1) | {"generator_2": "b"}], "several models", "generator_2"),
        ([annotation(None)], "no annotation has a preference", "annotations.json"),
    ],
)
def test_wrong_annotations(tmp_path: Path, rows: object, message: str, where: str) -> None:
    with pytest.raises(TableError, match=message) as error:
        alpaca_eval_metrics(write(tmp_path, rows))
    assert error.value.where is not None
    assert error.value.where.endswith(where)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="cannot be read"):
        alpaca_eval_metrics(tmp_path / "none.json")
