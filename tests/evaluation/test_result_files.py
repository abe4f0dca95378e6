from __future__ import annotations

import json
from pathlib import Path

import pytest

from expo_ray.errors import TableError
from expo_ray.evaluation.result_files import read_results
from expo_ray.evaluation.scores import is_less_better
from tests import samples
from tests.evaluation.result_logs import harness_log, inspect_log, rewards_table


def test_a_filter_is_part_of_a_metric(tmp_path: Path) -> None:
    lines = []
    for name, score in (("strict-match", 0.0), ("flexible-extract", 1.0)):
        path = harness_log(tmp_path / "x.jsonl", [score] * 3, metric="exact_match", filter=name)
        lines += [json.loads(line) for line in path.read_text().splitlines()]
    samples.write_lines(path, lines)
    with pytest.raises(TableError, match="which score is meant"):
        read_results(path, metric="exact_match")
    found = read_results(f"{path}#exact_match,flexible-extract")
    assert found.tasks[""].scores == {"0": [1.0], "1": [1.0], "2": [1.0]}
    assert found.metrics == {"": "exact_match,flexible-extract"}


def test_the_task_stands_in_the_name_of_the_file(tmp_path: Path) -> None:
    harness_log(tmp_path / "samples_mmlu_law_2026-02-03T04-05-06.789.jsonl", [1, 0])
    assert list(read_results(tmp_path).tasks) == ["mmlu_law"]
    harness_log(tmp_path / "samples_mmlu_law_2026-02-04T04-05-06.789.jsonl", [1, 0])
    with pytest.raises(TableError, match="a task is there twice"):
        read_results(tmp_path)


def test_inspects_letters_numbers_and_mappings(tmp_path: Path) -> None:
    path = inspect_log(tmp_path / "log.json", ["C", "P", "I", "N", 0.25, True])
    found = read_results(path, cluster="page")
    assert [s for [s] in found.tasks["arithmetic"].scores.values()] == [1, 0.5, 0, 0, 0.25, 1]
    assert list(found.tasks["arithmetic"].clusters.values()) == ["0"] * 3 + ["1"] * 3
    mapped = inspect_log(tmp_path / "mapped.json", [{"good": 1, "kind": 0}, {"good": 0, "kind": 1}])
    assert read_results(f"{mapped}#match/kind").tasks["arithmetic"].scores == {"1": [0], "2": [1]}
    with pytest.raises(TableError, match="did not finish"):
        read_results(inspect_log(tmp_path / "half.json", ["C"], status="error"))


def test_a_table_needs_names_of_its_items(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("text,right\na,true\nb,false\nc,\n")
    with pytest.raises(TableError, match="do not say which item"):
        read_results(path)
    assert read_results(path, item="text").tasks[""].scores == {"a": [1], "b": [0], "c": []}
    assert list(read_results(path, rows_are_items=True).tasks[""].scores) == ["0", "1", "2"]


@pytest.mark.parametrize(("text", "what"), [
    ("id,s\n1,0\n1,1\n", "two results for the same item"),
    ("id,s\n1,yes\n", "there is no such score"),
    ("id,s,t\n1,0,1\n", "it is not clear which score is meant"),
    ("id,s\n1,0,1\n", "a row has another number of fields than the header"),
    ("id,s\n", "the file holds no results"),
])  # fmt: skip
def test_malformed_tables_are_refused(text: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text(text)
    with pytest.raises(TableError) as caught:
        read_results(path)
    assert caught.value.message == what


def test_a_score_that_is_no_number_is_refused_by_its_row(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("id,s\n1,0\n2,good\n")
    with pytest.raises(TableError) as caught:
        read_results(f"{path}#s")
    assert caught.value.message == "there is no such score"
    log = harness_log(tmp_path / "l.jsonl", [1, 0], acc=[1, 2])
    with pytest.raises(TableError, match="a score is not a number"):
        read_results(log)


def test_a_table_of_several_candidates_is_not_one_model(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    parts = [rewards_table(tmp_path / f"{a}.parquet", {"p": [1.0]}, alpha=a) for a in (0.0, 0.3)]
    both = tmp_path / "both.parquet"
    pq.write_table(pa.concat_tables(pq.read_table(part) for part in parts), both)
    with pytest.raises(TableError, match="several candidates"):
        read_results(both)


@pytest.mark.parametrize(("name", "text", "what"), [
    ("gone.csv", None, "there are no such results"),
    ("log.eval", "PK", "results of an unknown format"),
    ("x.json", "{}", "the results are no list of objects"),
    ("x.json", "[1]", "the results are no list of objects"),
    ("x.jsonl", "{", "the results are not JSON"),
])  # fmt: skip
def test_other_files_are_refused(name: str, text: str | None, what: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(TableError) as caught:
        read_results(path)
    assert caught.value.message == what


def test_a_folder_without_logs_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(TableError, match="no logs of a harness"):
        read_results(tmp_path)


@pytest.mark.parametrize(("name", "less"), [
    ("wer", True), ("word_perplexity,none", True), ("bits_per_byte,none", True),
    ("WER-clean", True), ("brier_score", True), ("dev_loss", True), ("loss", True),
    ("error_rate", True), ("acc", False), ("error_free", False),
    ("exact_match,strict-match", False), ("lossless", False),
    ("power", False), ("certainty", False), ("match/kind", False),
])  # fmt: skip
def test_measures_of_which_less_is_better_are_known_by_their_names(name: str, less: bool) -> None:
    assert is_less_better(name) == less
