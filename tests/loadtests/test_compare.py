from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expo_ray.loadtests import LoadtestOptions, compare_folders, compare_summaries
from expo_ray.loadtests.metrics import summarize_point
from expo_ray.loadtests.records import REQUESTS_SCHEMA
from tests.loadtests.test_metrics import record


def summary(
    target: str, *, num_tokens: int, seconds: float, concurrency: int = 1
) -> dict[str, Any]:
    records = [
        record(
            i,
            intended_seconds=i * seconds,
            sent_seconds=i * seconds,
            token_seconds=((i + 0.5) * seconds, (i + 1) * seconds),
            done_seconds=(i + 1) * seconds,
            input_tokens=5,
            output_tokens=num_tokens,
        )
        for i in range(4)
    ]
    point = summarize_point(records, options=LoadtestOptions(), concurrency=concurrency)
    return {"target": target, "points": [point]}


def test_longer_answers_part_tokens_from_requests() -> None:
    # Twice the tokens in twice the time: as fast a service, half as many users served.
    before = summary("aligned", num_tokens=10, seconds=1.0)
    after = summary("expo", num_tokens=20, seconds=2.0)
    [point] = compare_summaries(before, after)["points"]
    assert point["output_throughput_ratio"] == pytest.approx(1.0)
    assert point["request_throughput_ratio"] == pytest.approx(0.5)
    assert point["tokens_per_request_ratio"] == pytest.approx(2.0)
    assert point["median_e2el_ms_ratio"] == pytest.approx(2.0)
    # Without an interval nothing is called a change, and nothing the same.
    assert point["text"] == (
        "tokens per answer: 2.00 times; tokens per second: 1.00 times; "
        "requests per second: 0.50 times"
    )


def test_only_shared_loads_are_compared() -> None:
    before = summary("a", num_tokens=10, seconds=1.0, concurrency=1)
    after = summary("b", num_tokens=10, seconds=1.0, concurrency=2)
    assert compare_summaries(before, after)["points"] == []
    assert len(compare_summaries(before, before)["points"]) == 1


def test_unknown_figures_stay_unknown() -> None:
    before = summary("a", num_tokens=10, seconds=1.0)
    before["points"][0]["total_output_tokens"] = None
    before["points"][0]["output_throughput"] = None
    [point] = compare_summaries(before, summary("b", num_tokens=10, seconds=1.0))["points"]
    assert point["output_throughput_ratio"] is None
    assert point["tokens_per_request_ratio"] is None
    assert "tokens per answer: not known" in point["text"]


def test_folders_are_compared_pair_by_pair(tmp_path: Path) -> None:
    for name, factor in (("before", 1), ("after", 2)):
        folder = tmp_path / name
        folder.mkdir()
        found = summary(name, num_tokens=10 * factor, seconds=1.0)
        (folder / "summary.json").write_text(json.dumps(found))
        rows = [
            record(i, output_tokens=10 * factor, prompt_id=f"p{i}").as_row(point=0)
            for i in range(4)
        ]
        pq.write_table(
            pa.Table.from_pylist(rows, schema=REQUESTS_SCHEMA), folder / "requests.parquet"
        )
    [point] = compare_folders(tmp_path / "before", tmp_path / "after")["points"]
    assert point["tokens_per_request_ratio"] == 2.0
    assert point["paired"]["num_pairs"] == 4
    assert point["paired"]["tokens_per_request"]["ratio"] == 2.0
