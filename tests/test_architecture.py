"""The floors of the house: imports run one way, and the command line stays light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "expo_ray"

# From the ground up. A room imports only from rooms before it; rooms on one floor know nothing
# of each other unless the list says so.
FLOORS = [
    {"printable", "json_text"},
    {"redaction"},
    {"errors", "progress", "lazy", "http_text", "yaml_text", "__init__"},
    {"credentials", "proxies"},
    {"ray_start"},
    {"cluster"},
    {"remote_errors"},
    {"checkpoints"},
    {"tables"},
    {"extrapolation"},
    {"rewards"},
    {"serving"},
    {"loadtests"},
    {"selection"},
    {"evaluation"},
    {"lab"},
    {"reports"},
    {"workflow"},
    {"cli"},
]
FLOOR_OF = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
WITHOUT_RAY = {
    "redaction",
    "errors",
    "progress",
    "credentials",
    "proxies",
    "checkpoints",
    "tables",
} | {
    "extrapolation",
    "rewards",
    "reports",
}
FAN_OUT = PACKAGE / "extrapolation" / "fanout.py"


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(path: Path) -> Iterator[tuple[str, int]]:
    """Every absolute import in a file, those inside functions too, but not for typing alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            yield str(node.module), node.lineno


@pytest.mark.parametrize("path", _modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_from_rooms_below_it(path: Path) -> None:
    room = _room(path)
    assert room in FLOOR_OF, f"room {room} has no floor"
    if path == PACKAGE / "__init__.py":
        return
    for module, line in _imports(path):
        parts = module.split(".")
        if parts[0] == "expo_ray" and len(parts) > 1 and parts[1] != room:
            assert FLOOR_OF[parts[1]] < FLOOR_OF[room], f"{path}:{line} imports {module}"
        if parts[0] == "ray" and room in WITHOUT_RAY:
            assert path == FAN_OUT, f"{path}:{line}: {room} must not import ray"
        if module == "expo_ray.cluster" and room in WITHOUT_RAY:
            assert path == FAN_OUT, f"{path}:{line}: {room} must not import ray"


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
