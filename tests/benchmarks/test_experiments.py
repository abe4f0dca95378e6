"""The page of Markdown that a controlled experiment leaves."""

from __future__ import annotations

from benchmarks.experiments import markdown
from tests.reports.study_file import study


def test_every_setting_is_a_row_and_too_few_seeds_are_said() -> None:
    text = markdown(study(name="10%"), 90.0)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    tables = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    for table in tables:
        assert len({row.count("|") for row in table}) == 1, "as many cells as headings"
    assert tables[1][0] == "| setting | -0.5 | 0 | 1 | 5 |"
    assert tables[1][1].startswith("| 10% | ")
    assert rows[1].startswith(
        "| 10% | 0.0123 | 1 to 5 | 4.00 | 4.40 | +0.40 [+0.30, +0.50] | [+0.10"
    )
    assert "--seeds 2,3,4 --num-prompts 300" in text
    assert "Partial" not in text
    few = markdown(study(seeds=False), 90.0)
    assert "**Partial**: 1 seed;" in few
    assert "--small" in few


def test_what_diagnose_said_is_told() -> None:
    assert "had warned of 0 of 6 pairs" in markdown(study(others=6), 1.0)
