"""Tables of comparisons on narrow terminals and in log files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from rich.console import Console

from expo_ray.cli.compare_commands import _render
from expo_ray.evaluation.comparison import compare_results
from expo_ray.reports.comparison_page import comparison_rows
from tests.evaluation.result_logs import harness_log

TASKS = ("gsm8k", "leaderboard_math_geometry_hard", "mmlu_professional_psychology")


def test_numbers_stay_whole_at_80_columns_and_names_fold(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
        for task in TASKS:
            scores = (1e5 * rng.random(40)).tolist()
            file = tmp_path / side / f"samples_{task}_2026-01-01T00-00-00.1.jsonl"
            harness_log(file, scores, metric="points")
    found = compare_results(tmp_path / "a", tmp_path / "b")
    console = Console(file=io.StringIO(), width=80)
    _render(console, found)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= 80
    rows = comparison_rows(found)
    assert len(rows) == 3
    assert "left out at this width: items, A, B" in lines
    for _, _, _, _, *numbers, _ in rows:
        assert any(all(number in line for number in numbers) for line in lines), numbers
    assert "leaderboard_" in console.file.getvalue()  # type: ignore[attr-defined]
