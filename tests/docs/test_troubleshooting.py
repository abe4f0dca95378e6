"""The page of refusals holds every message of the code, and none that the code has no more."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from expo_ray import errors

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "troubleshooting.md"
OURS = {name for name in vars(errors) if name.endswith("Error")}
API = "ApiError"
_HOLE = ".+"
_QUOTED = re.compile(r"`` (.+?) ``|`(.+?)`")


def quoted_messages() -> list[str]:
    """What stands in the first column of the page's tables, in backticks."""
    rows = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("| ")]
    cells = [line.split(" | ")[0] for line in rows]
    return [double or single for cell in cells for double, single in _QUOTED.findall(cell)]


def messages_of(node: ast.expr) -> list[str]:
    """The texts that an expression may become, as patterns: what is filled in matches anything."""
    match node:
        case ast.Constant(value=str(text)):
            return [re.escape(text)]
        case ast.JoinedStr(values=parts):
            known = [p.value if isinstance(p, ast.Constant) else None for p in parts]
            return ["".join(_HOLE if text is None else re.escape(str(text)) for text in known)]
        case ast.IfExp(body=one, orelse=other):
            return messages_of(one) + messages_of(other)
        case ast.BinOp(left=one, right=other):
            return [a + b for a in messages_of(one) for b in messages_of(other)]
    return []


def sources() -> Iterator[ast.AST]:
    for file in sorted((ROOT / "expo_ray").rglob("*.py")):
        yield from ast.walk(ast.parse(file.read_text("utf-8")))


@pytest.fixture(scope="module")
def raised() -> dict[str, set[str]]:
    """Patterns of the messages that the code gives to errors, by the kind of error."""
    found: dict[str, set[str]] = {}
    for node in sources():
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            kind = node.func.id
            message = 1 if kind == API else 0
            if (kind in OURS or kind == API) and len(node.args) > message:
                found.setdefault(kind, set()).update(messages_of(node.args[message]))
    return found


def test_every_message_has_its_cure(raised: dict[str, set[str]]) -> None:
    quoted = quoted_messages()
    patterns = set().union(*raised.values())
    assert len(patterns) > 300
    missing = [p for p in sorted(patterns) if not any(re.fullmatch(p, text) for text in quoted)]
    assert not missing, f"say in {PAGE} what these mean, and the cure: {missing}"


def test_no_quoted_message_is_gone(raised: dict[str, set[str]]) -> None:
    # Some errors are made by functions that take the message: any text of the code will do there.
    texts = {n.value for n in sources() if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    patterns = set().union(*raised.values())
    gone = [
        text
        for text in quoted_messages()
        if text not in texts and not any(re.fullmatch(pattern, text) for pattern in patterns)
    ]
    assert not gone, f"{PAGE} quotes what the code does not say: {gone}"
