"""Which code a function of the user runs, told without running any of it.

The module's file and the files of the same folder that it imports, and those that they import.
Installed packages are not looked into, and what is imported by a name made at run time is not seen.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path


def source_digest(folder: Path, module: str) -> str:
    """Return the sha256 of a module's source, and of what it imports from the same folder.

    Args:
        folder: The first place that it is looked for in; then where Python does.
        module: Its dotted name.
    """
    digest = hashlib.sha256()
    for file in sorted(_sources(folder, module) or _installed(module)):
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def _sources(folder: Path, module: str) -> set[Path]:
    found: set[Path] = set()
    names = [module]
    while names:
        for file, package in _files(folder, names.pop()).items():
            if file not in found:
                found.add(file)
                names += _imported(file, package)
    return found


def _files(folder: Path, module: str) -> dict[Path, str]:
    """Return the files of a module and of the packages around it, each with its package."""
    found = {}
    parts = module.split(".")
    for number in range(1, len(parts) + 1):
        stem, name = folder.joinpath(*parts[:number]), ".".join(parts[:number])
        package = stem / "__init__.py"
        if package.is_file():
            found[package] = name
        elif stem.with_suffix(".py").is_file():
            found[stem.with_suffix(".py")] = name.rpartition(".")[0]
    return found


def _imported(file: Path, package: str) -> Iterator[str]:
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return  # whoever loads it says so
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                try:
                    base = importlib.util.resolve_name("." * node.level + base, package)
                except ImportError:
                    continue
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _installed(module: str) -> set[Path]:
    """Return the files of a module where Python finds it; nothing around it."""
    places = (Path(place) for place in sys.path if place)
    return set(next(filter(None, (_files(place, module) for place in places)), {}))
