from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from expo_ray.reports import write_report
from expo_ray.reports.sample_tables import reported_rows, sample_tables
from tests.reports.run_directory import RunDirectory


def told(model: str, statistic: str, mean: float | None, low: float | None) -> dict[str, Any]:
    return {
        "guard": None,
        "reward_model": model,
        "statistic": statistic,
        "mean": mean,
        "ci_low": low,
        "ci_high": None if low is None else low + 0.125,
        "num_prompts": 40,
    }


def test_each_check_has_a_table(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "run").write_all()
    file = tmp_path / "run" / "selection.json"
    selection = json.loads(file.read_text())
    assert sample_tables(selection) == []
    first, second, *_ = sorted(selection["candidates"], key=lambda one: one["alpha"])
    first["samples"] = [
        told("check:number", "avg@4", 0.4375, 0.375),
        told("check:number", "pass@4", 1.0, None),
        told("check:regex=<b>", "avg@4", None, None),
    ]
    second["samples"] = [told("check:number", "avg@4", 0.5625, 0.5)]
    file.write_text(json.dumps(selection))
    number, regex = sample_tables(selection)
    assert (number.reward_model, number.statistics) == ("check:number", ["avg@4", "pass@4"])
    assert [alpha for alpha, _ in number.rows] == sorted(
        c["alpha"] for c in selection["candidates"]
    )
    assert number.rows[1][1] == [second["samples"][0], None]
    assert regex.statistics == ["avg@4"]
    html = write_report(tmp_path / "run").read_text("utf-8")
    section = html.partition("Several answers")[2].partition("</section>")[0]
    text = re.sub("<[^>]+>", "", section)
    assert "0.438" in text and "0.375 to 0.500" in text and "1.000" in text
    assert "check:regex=&lt;b&gt;" in section and "<b>" not in section


def test_what_is_only_reported_has_a_table(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "run").write_all()
    file = tmp_path / "run" / "selection.json"
    selection = json.loads(file.read_text())
    assert reported_rows(selection) == []
    assert "What is only reported" not in write_report(tmp_path / "run").read_text("utf-8")
    gain = {"gain": -0.25, "ci_low": -0.375, "ci_high": -0.125, "num_prompts": 40}
    *_, last = sorted(selection["candidates"], key=lambda one: one["alpha"])
    last["reported"] = [{"reward_model": "1-<b>", **gain}]
    file.write_text(json.dumps(selection))
    html = write_report(tmp_path / "run").read_text("utf-8")
    section = html.partition("What is only reported")[2].partition("</section>")[0]
    assert "1-&lt;b&gt;" in section and "<b>" not in section
    assert "0.250" in section and "0.375" in section
