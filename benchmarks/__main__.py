"""Lists the benchmarks, as their docstrings describe them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_NEEDS = re.compile(r"^Needs: (?P<needs>.+)\. Takes: (?P<takes>.+)\.$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What one can know of a benchmark without running it."""

    name: str
    summary: str
    needs: str
    takes: str


def benchmarks() -> Iterator[Benchmark]:
    """Yield every module of this folder that says what it needs; the others are parts of these."""
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        if found := _NEEDS.search(text):
            yield Benchmark(name=path.stem, summary=text.splitlines()[0], **found.groupdict())


if __name__ == "__main__":
    for one in benchmarks():
        print(f"python -m benchmarks.{one.name}\n    {one.summary}")
        print(f"    Needs {one.needs}; takes {one.takes}.")
