"""The floors of the house: imports run one way, and the command line stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.floors import (
    FLOORS,
    PACKAGE,
    ROOT,
    arrows,
    box_of,
    circles,
    files,
    imports_of,
    module_of,
)
from tests.floors_picture import PAGE, with_tables

WITHOUT_RAY = {
    "redaction",
    "errors",
    "progress",
    "credentials",
    "extras",
    "proxies",
    "checkpoints",
    "tables",
    "extrapolation",
    "rewards",
    "reports",
}
FAN_OUT = PACKAGE / "extrapolation" / "nodes" / "fanout.py"
INTERNALS = (PACKAGE / "ray_internals.py", PACKAGE / "serve_internals.py")
# What Ray's documentation names; other variables of its environment are its own affair.
RAY_VARIABLES = (
    r"RAY_(ADDRESS|API_SERVER_ADDRESS|TMPDIR|USAGE_STATS_ENABLED|AUTH_MODE|AUTH_TOKEN(_PATH)?)\b"
)
PRIVATE_OF_RAY = re.compile(
    r"\bray\.(\w+\.)*_(?!_)|internal_kv|ray\.(core|serve\.context|util\.client)\b"
    rf"|_(actor_id|engine_client)\b|\b(?!{RAY_VARIABLES})RAY_[A-Z]"
)


@pytest.mark.parametrize("storey", FLOORS)
def test_a_box_imports_only_from_boxes_below_it(storey: str) -> None:
    floor_of = {box: number for number, boxes in enumerate(FLOORS[storey]) for box in boxes}
    inside = {box_of(module_of(path), storey) for path in files()} - {None}
    assert inside == floor_of.keys(), "every box has one floor"
    for (source, target), found in arrows(storey).items():
        one = found[0]
        assert floor_of[target] < floor_of[source], f"{one.path}:{one.line} imports {one.target}"


def test_the_page_about_the_architecture_has_the_tables_of_today() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert all(f"<!-- table: {storey} -->" in page for storey in FLOORS)
    assert with_tables(page) == page, "python -m tests.floors_picture"


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles() == []


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_that_do_without_ray_do_not_import_it(path: Path) -> None:
    room = box_of(module_of(path), "expo_ray")
    if room not in WITHOUT_RAY or path == FAN_OUT:
        return
    for one in imports_of(path):
        is_ray = one.target.split(".")[0] == "ray" or one.target == "expo_ray.cluster"
        assert not is_ray, f"{path}:{one.line}: {room} must not import ray"


@pytest.mark.parametrize("storey", ["checkpoints", "extrapolation"])
def test_the_tests_of_inner_floors_lie_in_folders_of_their_names(storey: str) -> None:
    folders = {path.name for path in (ROOT / "tests" / storey).iterdir() if path.is_dir()}
    boxes = {box for boxes in FLOORS[f"expo_ray.{storey}"] for box in boxes}
    inner = {path.name for path in (PACKAGE / storey).iterdir() if path.is_dir()} & boxes
    assert inner <= folders, f"no tests for {sorted(inner - folders)}"
    assert folders - {"__pycache__"} <= boxes, f"no such box: {sorted(folders - boxes)}"


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_ray_is_asked_in_public_and_with_a_time_limit(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path not in INTERNALS:
        private = PRIVATE_OF_RAY.search(text)
        assert private is None, f"{path}: {private} belongs into {INTERNALS[0].name}"
    for call in ast.walk(ast.parse(text)):
        if isinstance(call, ast.Call) and ast.unparse(call.func) in ("ray.get", "ray.wait"):
            named = {keyword.arg for keyword in call.keywords}
            assert "timeout" in named, f"{path}:{call.lineno}: waits without end"


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from expo_ray.cli.main import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "heavy = {'torch', 'ray', 'transformers', 'vllm', 'pyarrow', 'matplotlib', 'scipy'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for command in (
        "extrapolate",
        "verify",
        "inspect",
        "diagnose",
        "serve",
        "generate",
        "score",
        "select",
        "loadtest",
        "evaluate",
        "report",
        "run",
    ):
        assert command in result.stdout


def test_the_package_imports_nothing_heavy() -> None:
    code = "import expo_ray, sys; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_every_public_name_is_a_function_whatever_was_imported_before() -> None:
    code = """
import importlib, pkgutil, expo_ray
for module in pkgutil.iter_modules(expo_ray.__path__, "expo_ray."):
    importlib.import_module(module.name)
for name in expo_ray.__all__:
    assert callable(getattr(expo_ray, name)), name
"""
    subprocess.run([sys.executable, "-c", code], check=True)
