"""`python -m benchmarks` knows every benchmark, and each of them starts from the root."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import benchmarks

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(
    path
    for path in (ROOT / "benchmarks").glob("[!_]*.py")
    if '__name__ == "__main__"' in path.read_text("utf-8")
)


def test_every_benchmark_is_listed() -> None:
    command = [sys.executable, "-m", "benchmarks"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = [path.stem for path in MODULES]
    assert [one.name for one in benchmarks()] == names
    assert [line.split(".")[-1] for line in told.splitlines() if line[0] != " "] == names
    assert all(len(line) <= 140 for line in told.splitlines())


@pytest.mark.parametrize("name", [path.stem for path in MODULES])
def test_a_benchmark_tells_its_flags(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(sys, "argv", [name, "--help"])
    with pytest.raises(SystemExit) as end:
        module.main()
    assert end.value.code == 0
    assert "--" in capsys.readouterr().out


def test_no_module_edits_the_path_of_imports() -> None:
    for folder in ("benchmarks", "tests"):
        for path in (ROOT / folder).rglob("*.py"):
            if path != Path(__file__):
                text = path.read_text("utf-8")
                assert not any(f"sys.path{way}" in text for way in (".insert", ".append", "[:0]"))
