"""Every script of docs/examples runs, and stands on the page of examples."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.docs.blocks import ROOT
from tests.docs.workbench import PORT, add_results, environment, make_workbench
from tests.head_node import free_port

SCRIPTS = sorted((ROOT / "docs" / "examples").glob("*.py"))
# These put models behind Ray Serve.
SLOW = {"choose_alpha", "live_alpha"}


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(make_workbench(tmp_path))
    monkeypatch.setenv("PATH", environment()["PATH"])
    return tmp_path


def _run(name: str, output: pytest.CaptureFixture[str]) -> None:
    script = ROOT / "docs" / "examples" / f"{name}.py"
    code = script.read_text().replace(f'"{PORT}"', f'"{free_port()}"')
    exec(compile(code, script, "exec"), {"__name__": "__main__"})
    assert output.readouterr().out


@pytest.mark.parametrize("name", sorted({script.stem for script in SCRIPTS} - SLOW))
def test_quick_example_runs(name: str, bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    add_results(bench)
    _run(name, capsys)


@pytest.mark.slow
def test_alpha_is_chosen_and_the_run_is_read(
    bench: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run("choose_alpha", capsys)
    _run("read_a_selection", capsys)


@pytest.mark.slow
def test_alpha_changes_live(bench: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run("live_alpha", capsys)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_example_stands_on_a_page(script: Path) -> None:
    page = (ROOT / "docs" / "examples.md").read_text()
    assert f"{{literalinclude}} examples/{script.name}\n" in page
