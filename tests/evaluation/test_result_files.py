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
    ("id,s,s\n1,0,1\n", "two columns have one name"),
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


def annotated(path: Path, **changes: object) -> Path:
    rows = samples.annotations([1.25, 1.75, 2.0])
    for row in rows:
        row["page"] = "p"
    rows[1] |= changes
    path.write_text(json.dumps(rows))
    return path


def test_annotations_have_one_score_and_may_share_documents(tmp_path: Path) -> None:
    path = annotated(tmp_path / "a.json")
    found = read_results(path, metric="preference", cluster="page")
    assert [s for [s] in found.tasks[""].scores.values()] == [0.25, 0.75, 1.0]
    assert list(found.tasks[""].clusters.values()) == ["p"] * 3
    with pytest.raises(TableError, match="there is no such score"):
        read_results(f"{path}#acc")
    with pytest.raises(TableError, match="to which document") as caught:
        read_results(path, cluster="passage")
    assert caught.value.where == f"{path} row 0"


@pytest.mark.parametrize("name", [None, "", " "])
def test_an_annotation_without_an_instruction_is_refused(name: str | None, tmp_path: Path) -> None:
    path = annotated(tmp_path / "a.json", instruction=name)
    with pytest.raises(TableError, match="a result does not say which item it is of") as caught:
        read_results(path)
    assert (caught.value.where, caught.value.got) == (f"{path} row 1", repr(name))


@pytest.mark.parametrize(("row", "what"), [
    (",p,1", "a result does not say which item it is of"),
    ("  ,p,1", "a result does not say which item it is of"),
    ("c,,1", "an item does not say to which document it belongs"),
])  # fmt: skip
def test_empty_names_in_a_table_are_refused(row: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text(f"id,page,s\na,p,1\nb,q,0\n{row}\n")
    with pytest.raises(TableError) as caught:
        read_results(path, cluster="page")
    assert (caught.value.message, caught.value.where) == (what, f"{path} row 2")
    assert ("item" if "which item" in what else "cluster") in str(caught.value.hint)


@pytest.mark.parametrize("row", [{"s": 1}, {"id": None, "s": 1}, {"id": float("nan"), "s": 1}])
def test_missing_names_in_a_table_are_refused(row: dict[str, object], tmp_path: Path) -> None:
    path = samples.write_lines(tmp_path / "r.jsonl", [{"id": 0, "s": 1}, row])
    with pytest.raises(TableError, match="a result does not say which item it is of"):
        read_results(path)


@pytest.mark.parametrize("line", [{"acc": 1.0}, {"doc": {}, "acc": 1.0, "filter": "other"}])
def test_a_line_of_a_log_without_its_document_is_refused(
    line: dict[str, object], tmp_path: Path
) -> None:
    path = harness_log(tmp_path / "l.jsonl", [1, 0])
    samples.write_lines(path, [*map(json.loads, path.read_text().splitlines()), line])
    with pytest.raises(TableError, match="a result does not say which item it is of") as caught:
        read_results(path)
    assert caught.value.where == f"{path} line 3"


@pytest.mark.parametrize("sample", [{"scores": {"match": {"value": 1}}}, "a sample"])
def test_a_sample_of_inspect_without_its_id_is_refused(sample: object, tmp_path: Path) -> None:
    path = inspect_log(tmp_path / "l.json", ["C", "I"])
    log = json.loads(path.read_text())
    log["samples"].append(sample)
    path.write_text(json.dumps(log))
    with pytest.raises(TableError, match="a result does not say which item it is of") as caught:
        read_results(path)
    assert caught.value.where == f"{path} sample 3"


def test_logs_and_annotations_take_no_names_of_items(tmp_path: Path) -> None:
    paths = [harness_log(tmp_path / "l.jsonl", [1]), inspect_log(tmp_path / "i.json", ["C"]),
             annotated(tmp_path / "a.json"), tmp_path]  # fmt: skip
    for path in paths:
        with pytest.raises(TableError, match="name their items themselves"):
            read_results(path, item="page")
