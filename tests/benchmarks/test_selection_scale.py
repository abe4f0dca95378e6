"""The benchmark of large selections runs on a small one: its made-up tables are those of a run."""

from __future__ import annotations

import subprocess
import sys


def test_a_small_selection_is_measured() -> None:
    command = [sys.executable, "-m", "benchmarks.selection_scale", "--prompts", "200"]
    done = subprocess.run(
        [*command, "--alphas", "2"], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for stage in ("reading the tables", "choice", "choice again", "report", "400 responses"):
        assert f"\n{stage}" in f"\n{done.stdout}"
