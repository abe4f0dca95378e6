r"""`check:number`: the number, or formula, that a response ends with is the answer.

What a response says last counts: the last \boxed{...}; else what follows the last `####`; else the
last sentence with `answer is` or `answer:`; else its last number. Numbers are compared exactly, to
six digits; what is no plain number (roots, symbols, intervals, sets) goes to math-verify.
"""

from __future__ import annotations

import re
from typing import Any

from expo_ray.extras import install_command, missing_modules
from expo_ray.rewards.checks.kind import (
    Arguments,
    BrokenCheckError,
    Check,
    Checked,
    CheckKind,
    Trial,
    no_argument,
)
from expo_ray.rewards.checks.plain_numbers import last_number, only_number

_MAX_CHARS = 100_000
"""Of a response that is read: its end. What is longer repeats itself."""
_PHRASE = re.compile(r"answer\s*(?:is|are|=|:)\s*:?\**\s*(.+?)(?=\.(?:\s|$)|\n|$)", re.IGNORECASE)
_HASHES = re.compile(r"####\s*([^\n]+)")
_MARKED = re.compile(r"\$\$(.+?)\$\$|\$([^$\n]+)\$|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_WORD = re.compile(r"(?<!\\)(?<![A-Za-z])[A-Za-z]{3,}")
_COMMAND = re.compile(r"\\[A-Za-z]+(?:\{[A-Za-z ]*\})?")
_FORMULA_WORDS = {"sin", "cos", "tan", "cot", "log", "exp", "sqrt", "min", "max", "mod", "and"}


class NumberCheck(Check):
    """Compares what responses end with."""

    def reward(self, checked: Checked) -> float:
        """Return whether the response ends with the answer."""
        target = _target_text(checked.columns["answer"])
        if fault := self.target_fault(target):
            raise BrokenCheckError(fault)
        said, is_alone = _final(checked.response[-_MAX_CHARS:])
        right = only_number(target)
        if right is None:
            return _verify(target, said if is_alone else _last_formula(said))
        number = only_number(said) if is_alone else last_number(said)
        if number is not None:
            return float(right.equals(number))
        if is_alone and not _WORD.search(said) and re.search(r"[\d\\]", said):
            return _verify(target, said)
        return 0.0

    def target_fault(self, target: str) -> str | None:
        """Return why an answer is neither a number nor a formula."""
        target = _target_text(target)
        if only_number(target) is not None:
            return None
        words = {word.lower() for word in _WORD.findall(_COMMAND.sub("", target))}
        is_prose = bool(words - _FORMULA_WORDS) or not target.strip()
        if is_prose or not _parse(f"\\boxed{{{target}}}"):
            return f"the answer {target[:80]!r} is neither a number nor a formula"
        return None


def said_number(response: str) -> str | None:
    """Return what a response ends with, equal numbers as one text; None where it has none."""
    said, is_alone = _final(response[-_MAX_CHARS:])
    number = only_number(said) if is_alone else last_number(said)
    if number is not None:
        return f"{number.value}{'%' if number.is_percent else ''}"
    return "".join(said.split()) or None if is_alone else None


def _target_text(target: str) -> str:
    """Return the answer itself of a worked solution, as GSM8K and MATH have them."""
    boxed = _last_boxed(target)
    if boxed is not None:
        return boxed
    hashes = _HASHES.findall(target)
    return hashes[-1] if hashes else target


def _final(response: str) -> tuple[str, bool]:
    """Return what a response says last, and whether that is the answer alone, without prose."""
    boxed = _last_boxed(response)
    if boxed is not None:
        return boxed, True
    for pattern in (_HASHES, _PHRASE):
        if found := pattern.findall(response):
            return found[-1], only_number(found[-1]) is not None
    return response, False


def _last_formula(said: str) -> str:
    """Return the last formula of a text; without marks around one, what its last line ends with."""
    if found := _MARKED.findall(said):
        return next(filter(None, found[-1]), "")
    lines = said.strip().splitlines() or [""]
    return re.split(r"\bis\b|:|=(?!=)", lines[-1])[-1].strip().rstrip(".").strip("* ")


def _last_boxed(text: str) -> str | None:
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    opening = text.find("{", start)
    if start < 0 or opening < 0:
        return None
    depth = 0
    for place in range(opening, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[opening + 1 : place]
    return None


def _verify(target: str, said: str) -> float:
    right, parsed = _parse(f"\\boxed{{{target}}}"), _parse(f"\\boxed{{{said}}}")
    if not parsed:
        return 0.0
    from math_verify import verify

    return float(verify(right, parsed, timeout_seconds=None, raise_on_error=True))


def _parse(text: str) -> list[Any]:
    if missing_modules("math"):
        raise BrokenCheckError(
            f"what is no plain number needs the extra `math`: {install_command('math')}"
        )
    from math_verify import parse

    # The limit in time is that of the process around.
    return list(parse(text, parsing_timeout=None, raise_on_error=True))


def _open(arguments: Arguments) -> Check:
    if not missing_modules("math"):
        import math_verify  # noqa: F401 - seconds, which no row is to be blamed for
    return NumberCheck()


NUMBER = CheckKind(
    name="number",
    form="check:number",
    parse=lambda text: no_argument(text, "check:number"),
    open=_open,
    column="answer",
    vote=said_number,
    trials=(
        Trial(response="6 times 7 makes 42.", target="42", is_right=True),
        Trial(response="So the answer is \\boxed{1{,}234.5}.", target="1,234.5", is_right=True),
        Trial(response="It is 24.", target="42", is_right=False),
        Trial(response="I do not know.", target="42", is_right=False),
    ),
)
