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


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(p, id=p.stem, marks=[pytest.mark.slow] if p.stem in SLOW else [])
        for p in SCRIPTS
    ],
)
def test_example_runs(
    script: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(add_results(make_workbench(tmp_path)))
    monkeypatch.setenv("PATH", environment()["PATH"])
    code = script.read_text().replace(f'"{PORT}"', f'"{free_port()}"')
    exec(compile(code, script, "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_example_stands_on_a_page(script: Path) -> None:
    page = (ROOT / "docs" / "examples.md").read_text()
    assert f"{{literalinclude}} examples/{script.name}\n" in page
