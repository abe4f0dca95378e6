from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from expo_ray.errors import ConfigError, TableError
from expo_ray.evaluation.comparison import compare_results
from expo_ray.evaluation.prompt_plan import plan_prompts
from tests.evaluation.result_logs import harness_log, inspect_log, rewards_table

# Pairs right on both sides, on one alone, on none: every table of 220 items with the p-values that
# lm-evaluation-harness PR #3868 prints, 0.080 without pairs and 0.008 with them. It states these
# and the number of items, not the table.
PUBLISHED = [
    (7, 8, 0), (205, 8, 0), (50, 27, 10), (133, 27, 10), (68, 30, 12), (110, 30, 12),
]  # fmt: skip


def pairs(both: int, gained: int, lost: int, n: int = 220) -> tuple[list[int], list[int]]:
    neither = n - both - gained - lost
    a = [1] * both + [0] * gained + [1] * lost + [0] * neither
    b = [1] * both + [1] * gained + [0] * lost + [0] * neither
    return a, b


def only(found: dict[str, Any]) -> dict[str, Any]:
    [task] = found["tasks"]
    return dict(task)


@pytest.mark.parametrize(("both", "gained", "lost"), PUBLISHED)
def test_pairs_tell_what_two_means_do_not(
    both: int, gained: int, lost: int, tmp_path: Path
) -> None:
    a, b = pairs(both, gained, lost)
    found = only(compare_results(harness_log(tmp_path / "a.jsonl", a),
                                 harness_log(tmp_path / "b.jsonl", b)))  # fmt: skip
    assert round(found["unpaired_p_value"], 3) == 0.080
    assert round(found["p_value"], 3) == 0.008
    assert (found["test"], found["verdict"]) == ("mcnemar", "better")
    assert (found["gained"], found["lost"]) == (gained, lost)
    assert 0 < found["ci_low"] < found["difference"] < found["ci_high"]


def test_what_so_many_items_can_show(tmp_path: Path) -> None:
    a, b = pairs(100, 12, 9)
    found = only(compare_results(harness_log(tmp_path / "a.jsonl", a),
                                 harness_log(tmp_path / "b.jsonl", b)))  # fmt: skip
    assert found["verdict"] == "cannot-tell"
    error = np.std(np.subtract(b, a), ddof=1) / np.sqrt(220)
    assert found["detectable"] == pytest.approx((1.95996 + 0.84162) * error, rel=1e-4)
    needed = 220 * (found["detectable"] / found["difference"]) ** 2
    assert found["num_items_for_difference"] == pytest.approx(needed, rel=1e-2)
    assert found["effect"]["name"] == "odds ratio"
    assert found["effect"]["value"] == pytest.approx(12 / 9)


def test_two_published_models_against_one_baseline(published_data: Path) -> None:
    folder = published_data / "alpaca_eval" / "annotations"
    found = compare_results(folder / "zephyr-7b-sft-full.json", folder / "zephyr_0.05.json")
    task = only(found)
    assert (task["test"], task["num_items"], task["verdict"]) == ("bootstrap", 805, "cannot-tell")
    given = [
        [row["preference"] for row in json.loads((folder / name).read_text())]
        for name in ("zephyr-7b-sft-full.json", "zephyr_0.05.json")
    ]
    students = stats.ttest_rel(given[1], given[0])
    assert task["difference"] == pytest.approx(np.mean(given[1]) - np.mean(given[0]))
    low, high = students.confidence_interval()
    assert (task["ci_low"], task["ci_high"]) == pytest.approx((low, high), rel=0.15)
    assert found["a"]["judge"] == "weighted_alpaca_eval_gpt4_turbo against gpt4_1106_preview"


def test_documents_count_not_their_items(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    shared = np.repeat(rng.normal(0.3, 1, 40), 4)
    lines = ["item,page,a,b"]
    for i, gap in enumerate(shared + rng.normal(0, 0.1, 160)):
        lines.append(f"{i},{i // 4},0,{gap}")
    path = tmp_path / "r.csv"
    path.write_text("\n".join(lines))
    alone = only(compare_results(f"{path}#a", f"{path}#b"))
    clustered = only(compare_results(f"{path}#a", f"{path}#b", cluster="page"))
    assert clustered["num_clusters"] == 40
    assert clustered["difference"] == pytest.approx(alone["difference"])
    means = [np.mean([float(line.split(",")[3]) for line in lines[1 + 4 * i : 5 + 4 * i]])
             for i in range(40)]  # fmt: skip
    students = stats.ttest_1samp(means, 0)
    low, high = students.confidence_interval()
    assert clustered["ci_high"] - clustered["ci_low"] == pytest.approx(high - low, rel=0.1)
    assert clustered["p_value"] == pytest.approx(students.pvalue, rel=0.3)
    assert clustered["p_value"] > 10 * alone["p_value"]


def test_documents_of_unequal_size_keep_the_mean_of_items(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    rows = [(0, 1.0)] * 9 + [(1, -1.0)] + [(2, 0.5)] * 2
    path.write_text(
        "item,page,a,b\n" + "".join(f"{i},{p},0,{d}\n" for i, (p, d) in enumerate(rows))
    )
    found = only(compare_results(f"{path}#a", f"{path}#b", cluster="page"))
    assert found["difference"] == pytest.approx(np.mean([d for _, d in rows]))
    assert found["ci_low"] < found["difference"] < found["ci_high"]


def test_tasks_share_the_error(tmp_path: Path) -> None:
    for side, scores in (("a", [0] * 60), ("b", [1] * 6 + [0] * 54)):
        (tmp_path / side).mkdir()
        for task in ("x", "y", "z"):
            harness_log(tmp_path / side / f"samples_{task}_2026-01-01T00-00-00.1.jsonl", scores)
    found = compare_results(tmp_path / "a", tmp_path / "b")
    assert [task["task"] for task in found["tasks"]] == ["x", "y", "z"]
    [p] = {task["p_value"] for task in found["tasks"]}
    assert p == pytest.approx(2 / 2**6)
    assert {task["p_adjusted"] for task in found["tasks"]} == {3 * p}
    assert {task["verdict"] for task in found["tasks"]} == {"cannot-tell"}


def test_several_samples_of_a_prompt_are_one_item(tmp_path: Path) -> None:
    a = rewards_table(tmp_path / "a.parquet", {f"p{i}": [0.0, 1.0] for i in range(20)})
    b = rewards_table(tmp_path / "b.parquet", {f"p{i}": [1.0, 1.0 + i % 2] for i in range(20)},
                      alpha=0.3)  # fmt: skip
    found = compare_results(a, b)
    task = only(found)
    assert (task["num_items"], task["test"], task["difference"]) == (20, "bootstrap", 0.75)
    assert found["b"]["model"] == "alpha 0.3"
    assert found["a"]["judge"] == "./rm"


def test_missing_scores_are_left_out_and_told(tmp_path: Path) -> None:
    a = inspect_log(tmp_path / "a.json", ["C"] * 10 + ["I"] * 10)
    b = inspect_log(tmp_path / "b.json", [None] + ["C"] * 12 + ["I"] * 7, model="other")
    found = compare_results(a, b)
    task = only(found)
    assert (task["num_items"], task["num_missing"], task["gained"]) == (19, 1, 3)
    assert "1 of 20 items have no score" in found["warnings"][0]
    assert (found["a"]["model"], found["b"]["model"]) == ("openai/one", "other")


def refused(*, what: str, got: str, **how: Any) -> None:
    with pytest.raises(TableError) as caught:
        compare_results(**how)
    assert caught.value.message == what
    assert got in str(caught.value.got)


def test_other_items_are_refused_by_name(tmp_path: Path) -> None:
    a = harness_log(tmp_path / "a.jsonl", [1, 0, 1, 1])
    b = harness_log(tmp_path / "b.jsonl", [1, 0, 1])
    refused(what="the two hold different items", got="1 of A alone (3); 3 in both", a=a, b=b)
    moved = harness_log(tmp_path / "c.jsonl", [1, 0, 1, 1], doc_hash="another")
    refused(what="the same names stand for different items", got="4 of 4: 0, 1, 2, 3", a=a, b=moved)


def test_answers_alone_are_no_results_and_a_later_time_is_no_better_one(tmp_path: Path) -> None:
    """The answers of MT-Bench have one number each: when they were given."""
    for name in "ab":
        row = {"question_id": 81, "model_id": name, "choices": [], "tstamp": 1.7e9}
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(TableError):
        compare_results(tmp_path / "a.jsonl", tmp_path / "b.jsonl")


def test_what_cannot_be_paired_is_refused(tmp_path: Path) -> None:
    a = harness_log(tmp_path / "samples_x_2026-01-01T00-00-00.1.jsonl", [1, 0])
    b = harness_log(tmp_path / "samples_y_2026-01-01T00-00-00.1.jsonl", [1, 0])
    refused(what="the two hold different tasks", got="x, y", a=a, b=b)
    refused(what="both sides are the same results", got="None", a=a, b=a)
    log = inspect_log(tmp_path / "log.json", [1, 0])
    refused(what="results of different kinds cannot be paired", got="inspect", a=a, b=log)
    one = rewards_table(tmp_path / "1.parquet", {"p": [1.0], "q": [None]})
    other = rewards_table(tmp_path / "2.parquet", {"p": [1.0], "q": [2.0]}, alpha=1.0)
    refused(what="fewer than two items have a score on both sides", got="1 of 2", a=one, b=other)
    code = rewards_table(tmp_path / "3.parquet", {"p": [1.0], "q": [2.0]}, revision="checks-1-f")
    refused(what="results of different revisions of the judge cannot be paired",
            got="blake3:rm and checks-1-f", a=other, b=code)  # fmt: skip


def test_what_has_no_effect_or_was_not_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "r.csv"
    path.write_text("id,a,b\n1,0,1\n2,1,1\n3,0,1\n")
    sides = (f"{path}#a", f"{path}#b")
    for ask in (compare_results, partial(plan_prompts, gain=0.1)):
        with pytest.raises(ConfigError, match="names its score already"):
            ask(*sides, metric="a")
    assert compare_results(f"{path}#a", path, metric="b")["tasks"][0]["gained"] == 2
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        inspect_log(folder / "log.json", [1, 0] if name == "one" else [1, 1])
    (tmp_path / "two" / "other.json").write_text('{"status": "success"}')
    (tmp_path / "two" / "binary.eval").write_bytes(b"")
    found = compare_results(tmp_path / "one", tmp_path / "two")
    assert found["warnings"][0] == (
        f"{tmp_path / 'two'}: binary.eval, other.json not read: no log of inspect"
    )
    samples = tmp_path / "samples"
    samples.mkdir()
    harness_log(samples / "samples_x.jsonl", [1, 0, 1])
    harness_log(samples / "copied.jsonl", [1, 0, 1])
    plan = plan_prompts(samples, gain=0.1)
    assert plan["warnings"] == [
        f"{samples}: copied.jsonl not read: no log of lm-evaluation-harness"
    ]


def test_settings_out_of_range_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="out of range"):
        compare_results("a", "b", confidence=0.2)


def rates(path: Path, columns: str) -> str:
    rng = np.random.default_rng(7)
    lines = [f"{i},{0.4 + rng.normal(0, 0.05)},{0.24 + rng.normal(0, 0.05)}" for i in range(60)]
    path.write_text(f"id,{columns}\n" + "\n".join(lines))
    return str(path)


@pytest.mark.parametrize(("columns", "asked", "verdict", "lower"), [
    ("wer_a,wer_b", None, "better", True), ("acc_a,acc_b", None, "worse", False),
    ("my_a,my_b", True, "better", True), ("wer_a,wer_b", False, "worse", False),
])  # fmt: skip
def test_less_of_an_error_rate_is_better(
    columns: str, asked: bool | None, verdict: str, lower: bool, tmp_path: Path
) -> None:
    path = rates(tmp_path / "r.csv", columns)
    a, b = (f"{path}#{name}" for name in columns.split(","))
    task = only(compare_results(a, b, lower_is_better=asked))
    assert (task["verdict"], task["lower_is_better"]) == (verdict, lower)
    assert task["ci_low"] < task["difference"] < task["ci_high"] < 0
    assert (task["gained"] > task["lost"]) == (verdict == "better")


def test_fewer_errors_are_gains_with_their_odds(tmp_path: Path) -> None:
    a, b = pairs(100, 10, 27)
    found = only(compare_results(harness_log(tmp_path / "a.jsonl", a, metric="error"),
                                 harness_log(tmp_path / "b.jsonl", b, metric="error")))  # fmt: skip
    assert (found["test"], found["verdict"]) == ("mcnemar", "better")
    assert (found["gained"], found["lost"]) == (27, 10)
    assert found["effect"]["value"] == pytest.approx(2.7)
    assert found["ci_low"] < found["difference"] < found["ci_high"] < 0


def test_scores_that_run_both_ways_are_refused(tmp_path: Path) -> None:
    path = rates(tmp_path / "r.csv", "wer,acc")
    refused(what="of one of the two scores less is better, of the other more", got="wer and acc",
            a=f"{path}#wer", b=f"{path}#acc")  # fmt: skip


def test_other_prompts_on_the_two_sides_are_counted_and_told(tmp_path: Path) -> None:
    a = harness_log(tmp_path / "a.jsonl", [1, 0, 1])
    b = harness_log(tmp_path / "b.jsonl", [1, 1, 1])
    same = compare_results(a, b)
    assert (only(same)["num_other_prompts"], same["warnings"]) == (0, [])
    lines = [json.loads(line) for line in b.read_text().splitlines()]
    lines[2]["prompt_hash"] = "with examples"
    b.write_text("".join(json.dumps(line) + "\n" for line in lines))
    other = compare_results(a, b)
    assert only(other)["num_other_prompts"] == 1
    assert "1 of 3 items were asked by another prompt" in other["warnings"][0]
    unknown = compare_results(a, harness_log(tmp_path / "c.jsonl", [1, 1, 1], prompt_hash=None))
    assert only(unknown)["num_other_prompts"] is None
