"""The wheel: whole, and of use where there is nothing but it."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import expo_ray

ROOT = Path(__file__).resolve().parents[1]
ELSEWHERE = re.compile(
    r"\b(pipelines|clusters|benchmarks|tests|docs)/|Makefile|`make |\bmake install|install '?\.\["
)
# They write files of a checkout, or look whether there is one.
FOR_CHECKOUTS = {"workflow/recipe_reference.py", "workflow/submission.py"}


def ran(command: list[str], folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command that sees nothing of this checkout."""
    outer = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=folder, env={**outer, **environment}, capture_output=True, text=True
    )


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built from what git knows: no build folder is left or read."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z", "expo_ray"]
    names = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in [*filter(None, names.split("\0")), "pyproject.toml", "README.md", "LICENSE"]:
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    result = ran(build, folder)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-2000:]
    return next((folder / "dist").glob("*.whl"))


def test_the_wheel_holds_the_package_and_its_facts(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
        info = f"expo_ray-{expo_ray.__version__}.dist-info"
        metadata = content.read(f"{info}/METADATA").decode()
    files = (path for path in (ROOT / "expo_ray").rglob("*") if path.is_file())
    ours = {str(path.relative_to(ROOT)) for path in files if "__pycache__" not in path.parts}
    assert {name for name in names if not name.startswith(info)} == ours
    assert f"Version: {expo_ray.__version__}\n" in metadata
    for key in ("Summary", "Keywords", "Classifier", "Project-URL", "License-Expression"):
        assert f"\n{key}: " in metadata, key
    check = ran([sys.executable, "-m", "twine", "check", "--strict", str(wheel)], wheel.parent)
    assert check.returncode == 0, check.stdout


def test_a_new_recipe_needs_nothing_but_the_wheel(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as content:
        content.extractall(site)
    empty = tmp_path / "empty"
    empty.mkdir()
    command = [sys.executable, "-c", "from expo_ray.cli.main import main; main()"]
    new = ran([*command, "recipe", "new"], empty, PYTHONPATH=str(site))
    schema = re.match(r"# yaml-language-server: \$schema=(.+)\n", new.stdout)
    assert schema is not None
    assert Path(schema[1]).is_relative_to(site)
    assert json.loads(Path(schema[1]).read_text())["title"]
    (empty / "q.yaml").write_text(new.stdout)
    check = ran([*command, "recipe", "check", "q.yaml", "--json"], empty, PYTHONPATH=str(site))
    assert check.returncode == 0, check.stdout + check.stderr
    assert json.loads(check.stdout)["output"] == str(empty / "runs" / "quickstart")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_quickstart_runs_where_only_the_wheel_is_installed(wheel: Path, tmp_path: Path) -> None:
    uv = [sys.executable, "-m", "uv"]
    make = [*uv, "venv", "--python", sys.executable, "venv"]
    subprocess.run(make, cwd=tmp_path, check=True)
    links = ["--find-links", os.environ["PIP_FIND_LINKS"]] if "PIP_FIND_LINKS" in os.environ else []
    install = [*uv, "pip", "install", "--python", "venv", *links]
    install += ["--constraint", str(ROOT / "constraints.txt")]
    command = str(tmp_path / "venv" / "bin" / "expo-ray")
    empty = tmp_path / "empty"
    empty.mkdir()

    subprocess.run([*install, str(wheel)], cwd=tmp_path, check=True)
    new = ran([command, "recipe", "new", "--from", "quickstart"], empty)
    (empty / "q.yaml").write_text(new.stdout)
    refused = ran([command, "run", "q.yaml", "--json"], empty)
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert json.loads(refused.stdout)["error"]["hint"] == "pip install 'expo-ray[lab]'"
    assert [path.name for path in empty.iterdir()] == ["q.yaml"]

    subprocess.run([*install, f"{wheel}[lab]"], cwd=tmp_path, check=True)
    result = ran([command, "run", "q.yaml", "--json"], empty)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    assert json.loads(result.stdout)["selection"]["verdict"] in ("extrapolate", "keep-aligned")
    assert (empty / "runs" / "quickstart" / "report.html").is_file()


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the texts of a module that a user may read: all but docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    silent = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    # A command's docstring is its help.
    if "cli" in path.parts:
        silent = set()
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in silent
        ):
            yield node.lineno, node.value


def test_no_message_names_what_a_wheel_lacks() -> None:
    package = ROOT / "expo_ray"
    found = [
        f"{path.relative_to(ROOT)}:{line}: {text!r}"
        for path in package.rglob("*.py")
        if str(path.relative_to(package)) not in FOR_CHECKOUTS
        for line, text in texts_of(path)
        if ELSEWHERE.search(text)
    ]
    templates = [p for p in package.rglob("*") if p.suffix in {".j2", ".yaml", ".json", ".css"}]
    found += [str(p) for p in templates if ELSEWHERE.search(p.read_text(encoding="utf-8"))]
    assert not found
