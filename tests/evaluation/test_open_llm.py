"""Result files of lm-evaluation-harness, old and new: the paper's own, and of our making."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expo_ray.errors import TableError
from expo_ray.evaluation import open_llm_changes
from tests.published_data import find_data

OLD = {"acc": 0.5, "acc_stderr": 0.01, "acc_norm": 0.6, "acc_norm_stderr": 0.02}


def write_old(folder: Path, name: str, row: dict[str, Any], shots: int = 5, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    document = {"results": {name: row}, "config": {"num_fewshot": shots, **config}}
    (folder / f"{name}.json").write_text(json.dumps(document))
    return folder


def write_new(folder: Path, results: dict[str, Any], shots: dict[str, int], **more: Any) -> Path:
    (folder / "model").mkdir(parents=True)
    document = {"results": results, "n-shot": shots, "config": {"limit": None}, **more}
    (folder / "model" / "results_2026-01-01T00-00-00.json").write_text(json.dumps(document))
    return folder


def by_task(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["task"]: row for row in result["tasks"]}


# Table of the paper's repository, as the paper's fact sheet has it.
@pytest.mark.parametrize(
    ("pair", "before", "after", "gsm8k"),
    [
        ("tulu-2-dpo-7b", 57.9, 58.7, (27.3, 26.7)),
        ("LLaMA3-iterative-DPO-final", 70.6, 69.9, (67.2, 59.6)),
    ],
)
def test_published_pairs_give_the_published_means(
    pair: str, before: float, after: float, gsm8k: tuple[float, float]
) -> None:
    data = find_data()
    if data is None or not (data / "open_llm").is_dir():
        pytest.skip("the published result files of lm-evaluation-harness are not here")
    folder = data / "open_llm"
    result = open_llm_changes(folder / pair, folder / f"{pair}-ExPO")
    assert round(100 * result["mean"]["before"], 1) == before
    assert round(100 * result["mean"]["after"], 1) == after
    rows = by_task(result)
    found = rows["GSM8K"]
    assert tuple(round(100 * found[key], 1) for key in ("before", "after")) == gsm8k
    assert list(rows) == ["ARC", "HellaSwag", "MMLU", "TruthfulQA", "Winogrande", "GSM8K"]
    if pair.startswith("LLaMA3"):
        # By two standard errors alone nothing but the fall of GSM8K is beyond chance.
        assert [task for task, row in rows.items() if row["verdict"] != "cannot-tell"] == ["GSM8K"]
        assert found["verdict"] == "falls"


def test_one_task_by_two_versions_of_the_harness(tmp_path: Path) -> None:
    old = write_old(tmp_path / "old", "arc_challenge", OLD, shots=25)
    row = {"alias": "arc_challenge", "acc_norm,none": 0.7, "acc_norm_stderr,none": 0.02}
    new = write_new(tmp_path / "new", {"arc_challenge": row}, {"arc_challenge": 25})
    [found] = open_llm_changes(old, new)["tasks"]
    assert (found["task"], found["score"], found["num_shots"]) == ("ARC", "acc_norm", 25)
    assert found["change"] == pytest.approx(0.1)
    assert found["ci_low"] == pytest.approx(0.1 - 1.959964 * 0.02 * 2**0.5)
    assert found["verdict"] == "rises"


def test_a_task_of_no_leaderboard_has_a_row_and_parts_of_a_group_have_none(tmp_path: Path) -> None:
    results = {
        "leaderboard_bbh": {"acc_norm,none": 0.5, "acc_norm_stderr,none": "N/A"},
        "leaderboard_bbh_snarks": {"acc_norm,none": 0.4, "acc_norm_stderr,none": 0.1},
        "mine": {"alias": "mine", "exact_match,flexible": 0.25, "exact_match_stderr,flexible": 0.1},
    }
    # A name that only begins alike is no part.
    results["leaderboard_bbh_of_mine"] = results["mine"]
    groups = {"leaderboard_bbh": ["leaderboard_bbh_snarks"]}
    sides = [
        write_new(tmp_path / side, results, {"mine": 0}, group_subtasks=groups)
        for side in ("a", "b")
    ]
    rows = by_task(open_llm_changes(*sides))
    assert list(rows) == ["BBH", "leaderboard_bbh_of_mine", "mine"]
    assert rows["mine"]["score"] == "exact_match,flexible"
    assert (rows["BBH"]["ci_low"], rows["BBH"]["verdict"]) == (None, "cannot-tell")


@pytest.mark.parametrize(
    ("after", "message", "got"),
    [
        ({"shots": 0}, "measured in two ways", "0 after"),
        ({"limit": 10}, "measured in two ways", "10.0 after"),
        ({"row": {"acc": 0.5}}, "lacks its score", "acc"),
        ({"row": {"acc_norm": float("inf")}}, "not finite", "inf"),
        ({"name": "hellaswag"}, "no task in common", "hellaswag"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tmp_path: Path, after: dict[str, Any], message: str, got: str
) -> None:
    before = write_old(tmp_path / "a", "arc_challenge", OLD)
    made = {"name": "arc_challenge", "row": OLD, **after}
    with pytest.raises(TableError, match=message) as caught:
        open_llm_changes(before, write_old(tmp_path / "b", **made))
    assert got in str(caught.value.got)


def test_another_version_or_score_of_a_task_is_refused(tmp_path: Path) -> None:
    row = {"acc_norm,none": 0.5, "acc_norm_stderr,none": 0.1}
    sides = [
        write_new(tmp_path / str(version), {"mine": row}, {}, versions={"mine": version})
        for version in (1.0, 3.0)
    ]
    with pytest.raises(TableError, match="measured in two ways") as caught:
        open_llm_changes(*sides)
    assert "version of the task" in str(caught.value.where)
    other = write_new(tmp_path / "c", {"mine": {"acc,none": 0.5}}, {})
    with pytest.raises(TableError, match="measured in two ways") as caught:
        open_llm_changes(sides[0], other)
    assert "score" in str(caught.value.where)


def test_other_numbers_of_examples_than_the_leaderboards_give_no_mean(tmp_path: Path) -> None:
    rows = {
        "arc_challenge": {"acc_norm,none": 0.5},
        "hellaswag": {"acc_norm,none": 0.5},
        "mmlu": {"acc,none": 0.5},
        "truthfulqa_mc2": {"acc,none": 0.5},
        "winogrande": {"acc,none": 0.5},
        "gsm8k": {"exact_match,strict-match": 0.5},
    }
    shots = {"arc_challenge": 25, "hellaswag": 10, "mmlu": 5, "winogrande": 5, "gsm8k": 5}
    right = write_new(tmp_path / "a", rows, shots)
    assert open_llm_changes(right, right)["mean"]["change"] == 0
    wrong = write_new(tmp_path / "b", rows, {**shots, "gsm8k": 8})
    result = open_llm_changes(wrong, wrong)
    assert result["mean"] is None
    assert any("GSM8K: 8 examples" in note for note in result["notes"])


def test_a_folder_without_results_and_a_task_there_twice(tmp_path: Path) -> None:
    before = write_old(tmp_path / "a", "arc_challenge", OLD)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "notes.json").write_text("{}")
    with pytest.raises(TableError, match="holds no results"):
        open_llm_changes(before, tmp_path / "b")
    with pytest.raises(TableError, match="holds no results"):
        open_llm_changes(before, tmp_path / "b" / "notes.json")
    twice = write_old(tmp_path / "a" / "again", "arc_challenge", OLD)
    with pytest.raises(TableError, match="there twice"):
        open_llm_changes(before, twice)
    with pytest.raises(TableError, match="no such results"):
        open_llm_changes(tmp_path / "c", before)
