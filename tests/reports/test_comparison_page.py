from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import expo_ray
from expo_ray.cli.main import app
from expo_ray.errors import ConfigError
from expo_ray.reports.comparison_page import headline
from tests.evaluation.result_logs import harness_log, inspect_log


def write(folder: Path) -> tuple[str, str]:
    right = [(0, 1)] * 9 + [(1, 0)] + [(1, 1)] * 30
    return (
        str(harness_log(folder / "a.jsonl", [one for one, _ in right])),
        str(harness_log(folder / "b.jsonl", [other for _, other in right])),
    )


def test_the_pages_say_what_the_numbers_say(tmp_path: Path) -> None:
    a, b = write(tmp_path)
    pages = [tmp_path / "new" / "page.html", tmp_path / "page.md"]
    found = expo_ray.compare(a, b, output=pages)
    html, markdown = (page.read_text("utf-8") for page in pages)
    assert headline(found) == f"{b} is better than {a}"
    for text in (html, markdown):
        assert "McNemar" in text
        assert "is better than" in text
    assert "| 40 | 0.775 | 0.975 | +0.200 |" in markdown
    assert '<data value="0.2">+0.200</data>' in html
    assert "without pairs" in html


def test_foreign_names_are_shown_not_obeyed(tmp_path: Path) -> None:
    name = "<script>alert(1)</script>|\x1b[2J"
    a = inspect_log(tmp_path / "a.json", [0, 1, 0], model=name)
    b = inspect_log(tmp_path / "b.json", [1, 1, 0], model="b")
    pages = [tmp_path / "page.html", tmp_path / "page.md"]
    expo_ray.compare(a, b, output=pages)
    html, markdown = (page.read_text("utf-8") for page in pages)
    assert "<script>" not in html + markdown
    assert "\x1b" not in html + markdown


def test_a_page_of_another_kind_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not tell its format"):
        expo_ray.compare("gone", "gone", output=[tmp_path / "page.pdf"])


def test_the_command_prints_a_table_or_one_object(tmp_path: Path) -> None:
    a, b = write(tmp_path)
    shown = CliRunner().invoke(app, ["compare", a, b])
    assert shown.exit_code == 0
    assert "+0.200" in shown.output and "better" in shown.output
    told = CliRunner().invoke(app, ["compare", a, b, "--json"])
    assert json.loads(told.stdout)["tasks"][0]["gained"] == 9


def test_a_direction_is_said_and_may_be_given(tmp_path: Path) -> None:
    a, b = (str(harness_log(tmp_path / name, scores, metric="wer"))
            for name, scores in (("a.jsonl", [0.4] * 20 + [0.5]), ("b.jsonl", [0.2] * 20 + [0.4]))
            )  # fmt: skip
    pages = [tmp_path / "page.html", tmp_path / "page.md"]
    expo_ray.compare(a, b, output=pages)
    for page in pages:
        text = page.read_text("utf-8")
        assert "is better than" in text
        assert "less is better, by its name" in text
    shown = CliRunner().invoke(app, ["compare", a, b, "--higher-is-better"])
    assert "is worse than" in " ".join(shown.output.split())
    assert "less is better" not in shown.output
    both = CliRunner().invoke(app, ["compare", a, b, "--higher-is-better", "--lower-is-better"])
    assert both.exit_code != 0
    assert "a score has one direction" in str(both.exception)


def test_the_plan_is_printed(tmp_path: Path) -> None:
    a, b = write(tmp_path)
    shown = CliRunner().invoke(app, ["plan-prompts", a, b, "--margin", "0.05"])
    assert shown.exit_code == 0
    assert "pilot of both models on 40 items" in " ".join(shown.output.split())
    told = CliRunner().invoke(app, ["plan-prompts", "--gain", "0.05", "--json"])
    assert json.loads(told.stdout)["sizes"][0]["num_prompts"] == 785
