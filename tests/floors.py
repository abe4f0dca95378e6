"""The floors of the house, from the ground up, and the imports between its boxes.

`python -m tests.floors` prints how many imports run between the boxes of every storey.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "expo_ray"

# A box imports only from boxes on lower floors; boxes on one floor know nothing of each other.
FLOORS: Mapping[str, Sequence[Sequence[str]]] = {
    "expo_ray": [
        ["printable", "json_text", "cores", "haproxy"],
        ["redaction"],
        ["errors", "progress", "lazy", "http_text", "versions", "yaml_text", "child_python"],
        ["credentials", "extras", "flags", "proxies", "ray_internals"],
        ["serve_internals", "compiling"],
        ["ray_start"],
        ["cluster"],
        ["remote_errors"],
        ["checkpoints"],
        ["tables"],
        ["extrapolation"],
        ["rewards"],
        ["serving"],
        ["loadtests"],
        ["selection"],
        ["evaluation"],
        ["lab"],
        ["reports"],
        ["workflow"],
        ["cli"],
    ],
    "expo_ray.checkpoints": [
        ["names"],
        ["sidecars"],
        ["storages"],
        ["formats"],
        ["checkpoint"],
        ["tensors", "quantization", "digests", "read_ahead", "local_files"],
        ["computed"],
        ["opening"],
    ],
    "expo_ray.extrapolation": [
        ["pairing"],
        ["arithmetic"],
        ["planning"],
        ["shards"],
        ["nodes"],
        ["outputs"],
        ["writing"],
        ["trajectories"],
        ["job", "diagnosis", "verification", "inspection", "cluster_doctor"],
    ],
}


@dataclass(frozen=True, slots=True)
class Import:
    """One import of a module of the package, or of another package."""

    path: Path
    line: int
    source: str
    """Dotted name of the file that imports."""
    target: str
    """Dotted name of what is imported; of the package's own modules the file that defines it."""


def files() -> list[Path]:
    """Return every file of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """Return the dotted name of a file."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def imports_of(path: Path) -> list[Import]:
    """Return the imports of a file, those inside functions too, but not those for typing alone."""
    return list(_imports(path))


def _imports(path: Path) -> Iterator[Import]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped or not isinstance(node, ast.Import | ast.ImportFrom):
            continue
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [_home(str(node.module), alias.name) for alias in node.names]
        for name in dict.fromkeys(names):
            yield Import(path, node.lineno, module_of(path), name)


def _home(module: str, name: str) -> str:
    """Return the module that `from module import name` reads: a module of that name comes first."""
    inner = ROOT.joinpath(*module.split("."), name)
    is_module = inner.with_suffix(".py").is_file() or (inner / "__init__.py").is_file()
    return f"{module}.{name}" if is_module else module


def box_of(module: str, storey: str) -> str | None:
    """Return the box of a storey that a module lies in; None outside, and of its front door."""
    if not module.startswith(f"{storey}."):
        return None
    return module.removeprefix(f"{storey}.").split(".")[0]


def arrows(storey: str) -> dict[tuple[str, str], list[Import]]:
    """Return the imports between two boxes of a storey, by (importing box, imported box)."""
    found: dict[tuple[str, str], list[Import]] = {}
    for path in files():
        for one in imports_of(path):
            source, target = box_of(one.source, storey), box_of(one.target, storey)
            if source and target and source != target:
                found.setdefault((source, target), []).append(one)
    return found


def circles() -> list[list[str]]:
    """Return the modules of the package that import each other in a circle, each circle once."""
    graph: dict[str, set[str]] = {module_of(path): set() for path in files()}
    for path in files():
        # The front door of a package imports lazily what stands behind it.
        for one in imports_of(path):
            if one.target in graph and one.target != one.source:
                graph[one.source].add(one.target)
    # What imports nothing that is left goes, or what nothing left imports; circles stay.
    while gone := {
        module
        for module, targets in graph.items()
        if not targets & graph.keys() or all(module not in other for other in graph.values())
    }:
        graph = {module: targets for module, targets in graph.items() if module not in gone}
    return [[module, *sorted(targets & graph.keys())] for module, targets in sorted(graph.items())]


def main() -> None:
    for storey, floors in FLOORS.items():
        levels = {box: number for number, boxes in enumerate(floors) for box in boxes}
        found = arrows(storey)
        up = [pair for pair in found if levels[pair[0]] <= levels[pair[1]]]
        modules = Counter(box_of(module_of(path), storey) for path in files())
        num_files = sum(count for box, count in modules.items() if box)
        print(
            f"{storey}: {num_files} files, {len(levels)} boxes on {len(floors)} floors, "
            f"{len(found)} arrows between them, {sum(map(len, found.values()))} imports, "
            f"{len(up)} up"
        )
        for source, target in sorted(up):
            print(f"  up: {source} -> {target}")
    print(f"modules in circles: {len(circles())}")


if __name__ == "__main__":
    main()
