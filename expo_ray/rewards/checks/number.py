r"""`check:number`: the number, or formula, that a response ends with is the answer.

What a response says last counts: the last \boxed{...}; else the number behind the last `####`; else
the first number behind the last `=` of the last sentence with `answer is` or `answer:`; else the
last number of all. Numbers are compared exactly, to six digits; what is no plain number (roots,
symbols, intervals, sets, a number that is part of a formula) goes to math-verify.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

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
from expo_ray.rewards.checks.plain_numbers import (
    Found,
    PlainNumber,
    found_numbers,
    only_number,
)

_MAX_CHARS = 100_000
"""Of a response that is read: its end. What is longer repeats itself."""
_PHRASE = re.compile(r"answer\s*(?:is|are|=|:)\s*:?\**\s*(.+?)(?=\.(?:\s|$)|\n|$)", re.IGNORECASE)
# A heading of Markdown begins with a word.
_HASHES = re.compile(r"####[ \t]*(?=[-+\u2212$\u20ac\u00a3\u00a5\\({.\d])([^\n]+)")
_MINUS = re.compile(
    r"\b(?:minus|negative)\s+(?=[$\u20ac\u00a3\u00a5]?\.?\d)"
    r"|(?<=answer is )[-\u2212] (?=[$\u20ac\u00a3\u00a5]?\.?\d)"
    r"|(?<=answer: )[-\u2212] (?=[$\u20ac\u00a3\u00a5]?\.?\d)",
    re.IGNORECASE,
)
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
        said = _final(checked.response[-_MAX_CHARS:])
        right = only_number(target)
        if right is None:
            return _verify(target, said.text if said.is_alone else _last_formula(said.text))
        number = said.number()
        if number is None:
            return 0.0
        if isinstance(number, str):
            return _verify(target, number)
        return float(right.equals(number))

    def unreadable(self, checked: Checked) -> str | None:
        """Return that the response holds no number, or no formula where that is the answer."""
        said = _final(checked.response[-_MAX_CHARS:])
        if only_number(_target_text(checked.columns["answer"])) is not None:
            return None if said.number() is not None else "no number"
        text = said.text if said.is_alone else _last_formula(said.text)
        return None if text.strip() and _parse(f"\\boxed{{{text}}}") else "no formula"

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
    said = _final(response[-_MAX_CHARS:])
    number = said.number()
    if isinstance(number, PlainNumber):
        return f"{number.value}{'%' if number.is_percent else ''}"
    text = said.text if number is None and said.is_alone else number or ""
    return "".join(text.split()) or None


def _target_text(target: str) -> str:
    """Return the answer itself of a worked solution, as GSM8K and MATH have them."""
    boxed = _last_boxed(target)
    if boxed is not None:
        return boxed
    hashes = _HASHES.findall(target)
    return hashes[-1] if hashes else target


class Said(NamedTuple):
    """What a response says last."""

    text: str
    is_alone: bool
    """Whether that is the answer alone, without prose."""
    is_told: bool
    """Whether it was called the answer: then its first number counts, else its last one."""

    def number(self) -> PlainNumber | str | None:
        """Return the number, the formula that it is part of, or None where it is neither."""
        if self.is_alone:
            number = only_number(self.text)
            if number is not None:
                return number
            is_formula = not _WORD.search(_COMMAND.sub("", self.text))
            return self.text if is_formula and re.search(r"[\d\\]", self.text) else None
        found = found_numbers(self.text)
        if not found:
            return None
        one: Found = found[0] if self.is_told else found[-1]
        return _last_formula(self.text) if one.is_part else one.number


def _final(response: str) -> Said:
    boxed = _last_boxed(response)
    if boxed is not None:
        return Said(boxed, is_alone=True, is_told=True)
    response = _MINUS.sub("-", response)
    for pattern in (_HASHES, _PHRASE):
        if found := pattern.findall(response):
            text = found[-1]
            if only_number(text) is not None:
                return Said(text, is_alone=True, is_told=True)
            return Said(re.split(r"=(?!=)", text)[-1], is_alone=False, is_told=True)
    return Said(response, is_alone=False, is_told=False)


def _last_formula(said: str) -> str:
    """Return the last formula of a text; without marks around one, what its last line ends with."""
    if found := _MARKED.findall(said):
        return next(filter(None, found[-1]), "")
    lines = said.strip().splitlines() or [""]
    return re.split(r"\bis\b|:(?!\d)|=(?!=)", lines[-1])[-1].strip().rstrip(".").strip("* ")


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
    if "".join(target.split()) == "".join(said.split()):
        return 1.0
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
