"""The pages of load tests: what they say, and that nothing in them becomes markup."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from expo_ray.errors import ConfigError, TableError
from expo_ray.loadtests.loads import Load
from expo_ray.reports import write_report
from expo_ray.reports.load_figures import latency_curve
from tests.reports.load_folders import (
    Service,
    write_comparison,
    write_killed,
    write_scaling,
    write_slo_search,
    write_sweep,
    write_void,
)
from tests.reports.page import Page

EVIL = "<script>alert(1)</script><b>$_x$"


def page_of(folder: Path) -> Page:
    page = Page(write_report(folder))
    assert page.unclosed == []
    assert not [i for i, count in page.ids.items() if count > 1]
    assert "script" not in page.tags
    return page


def figures_of(folder: Path) -> set[str]:
    return {path.stem for path in (folder / "figures").glob("*.svg")}


def summary_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "summary.json").read_text()))


def test_a_sweep_to_saturation(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    page = page_of(tmp_path)
    summary = summary_of(tmp_path)
    assert figures_of(tmp_path) == {"throughput", "load-closed", "timeline-4"}
    assert "Saturation: 16 in flight instead of 8 gained" in page.text
    keys = ["request_throughput", "output_throughput"]
    latencies = [f"{s}_{n}_ms" for n in ("ttft", "tpot", "e2el") for s in ("median", "p99")]
    expected = [
        [*(p[k] for k in (*keys, *latencies)), *(p["steady"][k] for k in keys)]
        for p in summary["points"]
    ]
    assert [row for row in page.rows if len(row) == 10] == expected
    svg = (tmp_path / "figures" / "load-closed.svg").read_text()
    for words in ("saturated beyond", "whole run", "steady window", "output tokens per second"):
        assert words in svg


def test_a_search_shows_what_it_tried_and_found(tmp_path: Path) -> None:
    write_slo_search(tmp_path)
    search = summary_of(tmp_path)["search"]
    page = page_of(tmp_path)
    assert figures_of(tmp_path) >= {"search", "load-open", "throughput"}
    assert f"Highest rate that met the objectives: {search['rate']:.3g} requests" in page.text
    assert f"(at {search['failed_rate']:.3g} requests per second, " in page.text
    svg = (tmp_path / "figures" / "search.svg").read_text()
    assert f"dashed: the highest, {search['rate']:.3g}" in svg
    rates = [f"{point['offered_rate']:.3g}/s" for point in summary_of(tmp_path)["points"]]
    assert all(rate in svg for rate in rates)


def test_a_killed_replica_is_seen(tmp_path: Path) -> None:
    write_killed(tmp_path)
    page = page_of(tmp_path)
    assert "replica replica-0 answered no more after 3.0 s; replica-new took its place" in page.text
    assert "8 requests failed at 3.0 s: mid_stream 8" in page.text
    svg = (tmp_path / "figures" / "timeline-0.svg").read_text()
    assert "crosses: failed requests" in svg


def test_void_points_are_marked_and_are_no_best(tmp_path: Path) -> None:
    write_void(tmp_path)
    page = page_of(tmp_path)
    assert "Void: expo, 4 in flight, the client could not keep up" in page.text
    assert "4 in flight (void)" in page.text
    assert ">void<" in (tmp_path / "figures" / "load-closed.svg").read_text()
    service = Service(client_lag=0.3)
    service.offer(Load(concurrency=8))
    service.write(tmp_path / "all", model="expo")
    assert "the client could not keep up at any point" in page_of(tmp_path / "all").text


def test_a_service_whose_answers_come_from_several_models_is_told(tmp_path: Path) -> None:
    write_sweep(tmp_path)
    path = tmp_path / "summary.json"
    summary = json.loads(path.read_text())
    for name in ("a", "b"):
        answered = [{"model": "expo", "system_fingerprint": name, "num_requests": 80}]
        summary["points"][0]["answered_by"] += answered
        path.write_text(json.dumps(summary))
        assert ("expo: several models answered" in page_of(tmp_path).text) is (name == "b")
    assert "several models answered (expo a, expo b)" in page_of(tmp_path).text


def test_replica_scaling(tmp_path: Path) -> None:
    write_scaling(tmp_path)
    page = page_of(tmp_path)
    last = json.loads((tmp_path / "scaling.json").read_text())["points"][-1]
    assert figures_of(tmp_path) == {"scaling"}
    assert f"an efficiency of {last['efficiency']:.0%}" in page.text
    assert "4 replicas, direct, round 1" in page.text


def test_a_comparison_shows_ratios_with_their_intervals(tmp_path: Path) -> None:
    write_comparison(tmp_path)
    page = page_of(tmp_path)
    compared = json.loads((tmp_path / "comparison.json").read_text())
    assert figures_of(tmp_path) == {"comparison", "throughput"}
    # A closed loop says more than the open one, though it is not the last load.
    assert f"With 8 in flight: {compared['points'][1]['text']}." in page.text
    assert "requests per second: fewer" in page.text
    [label] = [v for _, name, v in page.attributes if name == "aria-label" and "Ratios" in v]
    ratio = compared["points"][0]["requests_per_second"]
    assert f"{ratio['ratio']:.2f} ({ratio['ci_low']:.2f} to {ratio['ci_high']:.2f})" in label


def test_names_become_no_markup_and_bytes_repeat(tmp_path: Path) -> None:
    service = Service(2, name=EVIL, killed_at=2.0)
    service.offer(Load(concurrency=12))
    service.write(tmp_path, model=EVIL)
    page = page_of(tmp_path)
    assert EVIL in page.text and "b" not in page.tags
    assert not re.search(r"<b>|<script", page.html)
    first = page.html
    write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == first


def test_folders_that_are_no_load_test(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no selection here"):
        write_report(tmp_path)
    write_sweep(tmp_path)
    table = tmp_path / "requests.parquet"
    table.write_bytes(b"PAR1")
    with pytest.raises(TableError):
        write_report(tmp_path)
    table.unlink()
    assert "Over time" not in Page(write_report(tmp_path)).text
    (tmp_path / "summary.json").write_text('{"points": [{}]}')
    with pytest.raises(ConfigError, match="not in the form"):
        write_report(tmp_path)


def test_thoughts_have_a_column_and_answers_without_one_a_caution(tmp_path: Path) -> None:
    write_killed(tmp_path)
    summary = summary_of(tmp_path)
    assert "first of the answer" not in page_of(tmp_path).text
    summary["points"][0].update(with_thoughts=9, without_answer=2, median_ttfat_ms=123456.7)
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    page = page_of(tmp_path)
    assert "first of the answer" in page.text
    assert 123456.7 in {cell for row in page.rows for cell in row}
    assert "2 of " in page.text and "hold thoughts, no answer" in page.text


def test_no_load_is_written_upon_the_axis() -> None:
    slow, fast = (
        {
            **{"mode": "closed", "concurrency": 1, "output_throughput": throughput},
            **{f"median_{name}": at for name, at in latencies.items()},
            **{f"p99_{name}": at + 5 for name, at in latencies.items()},
        }
        for throughput, latencies in (
            (200.0, {"ttft_ms": 500.0, "e2el_ms": 900.0}),
            (300.0, {"ttft_ms": 10.0, "e2el_ms": 30.0}),
        )
    )
    svg = latency_curve({"aligned": [fast], "alpha 1": [slow]}).svg
    heights = re.findall(r'<text [^>]* y="([\d.]+)"[^>]*>([^<]+)</text>', svg)
    lowest_name = max(float(y) for y, text in heights if text == "c=1")
    rates = max(float(y) for y, text in heights if re.fullmatch(r"\d+", text))
    assert rates - lowest_name > 10, "its letters are as high as the axis is above the numbers"
