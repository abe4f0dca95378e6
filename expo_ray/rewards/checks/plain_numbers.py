r"""Numbers as people and models write them: read exactly, as fractions.

1,234.5 and 1{,}234.5, -5, 3/4 and \frac{3}{4}, 2 1/2, 50%, 6.02e23 and 6.02 \times 10^{23},
$10,000, 5 million. Units are read over and never converted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_POWER = (
    r"(?:[eE][-+]?\d{1,4}\b"
    r"|\s*(?:\\times|\\cdot|\u00d7|[x*])\s*10\s*(?:\^|\*\*)\s*\{?\s*-?\d{1,4}\s*\}?)"
)
_MONEY = r"[$\u20ac\u00a3\u00a5]"
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_FOUND = re.compile(
    rf"""
    (?P<sign>(?:(?<![\w.)\]}}])[-+\u2212] | (?<=[=(:])\s?[-\u2212]\s)(?={_MONEY}?\.?\d))?
    (?<![\w.]) {_MONEY}?
    (?: (?P<whole>\d+)\s+(?P<over>\d+)/(?P<under>\d+)(?![\w/])
      | (?P<top>{_DIGITS})\s?/\s?(?P<bottom>{_DIGITS})(?![\w/])
      | (?P<number>{_DIGITS})
        (?:(?P<power>{_POWER}) | \s*\^\s*\{{?\s*(?P<exponent>-?\d{{1,3}})\s*\}}?)?
    )
    (?P<percent>\s?\\?%|\s?percent\b)?
    (?:\s(?P<scale>{"|".join(_SCALES)})\b)?
    """,
    re.VERBOSE | re.IGNORECASE,
)
_SIMPLE_FRACTION = re.compile(
    r"\\[dt]?frac\s*(?:\{\s*(-?[\d.,]*\d)\s*\}\s*\{\s*([\d.,]*\d)\s*\}|(\d)\s*(\d))"
)
_NO_SPACE = re.compile(r"\{,\}|\\[!,;:]|\\ (?=\d)|(?<=\d)[\u00a0\u202f\u2009](?=\d{3})")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mbox|mathbf|operatorname)\s*\{([^{}]*)\}")
_UNIT_POWER = re.compile(r"(?<=[A-Za-z])\s*\^\s*\{?\s*-?\d\s*\}?")
_MAX_DIGITS = 400
"""Of a number; a model that repeats a digit without end names none."""
_UNIT_LETTERS = frozenset("mgslLWVANJKCFhd")
_UNIT = re.compile(r"[A-Za-z\u00b5\u03a9\u00b0\u00b2\u00b3$\u20ac\u00a3\u00a5.]+")
_FORMULA_BEFORE = re.compile(r"(?:\\[a-zA-Z]+\s*[\[{(]?|\^\s*\{?|[A-Za-z]_\{?)$")
_FORMULA_AFTER = re.compile(r"\s?\\(?!text|%)[a-zA-Z]+|(?P<letter>[A-Za-z])(?![A-Za-z])|\s?\^")
_TOLERANCE = Fraction(1, 10**6)


@dataclass(frozen=True, slots=True)
class PlainNumber:
    """A number, and whether it was written as a percentage."""

    value: Fraction
    is_percent: bool = False

    def equals(self, other: PlainNumber) -> bool:
        """Return whether two numbers are the same to six digits.

        50% is the same as 50% and, beside a number without the sign, as 50 and as 0.5.
        """
        if self.is_percent == other.is_percent:
            return _close(self.value, other.value)
        percent, plain = (self, other) if self.is_percent else (other, self)
        return _close(percent.value, plain.value) or _close(percent.value / 100, plain.value)


class Found(NamedTuple):
    """A number in a text."""

    number: PlainNumber | None
    """None where it is none after all: a division by zero, digits without end."""
    is_part: bool
    """Whether it is part of a formula: 5 of 5\\pi, 2 of \\sqrt{2}, of 2x and of x^2."""


def found_numbers(text: str) -> list[Found]:
    """Return all numbers of a text in their order."""
    plain = _plainer(text)
    return [
        Found(_number(match), _is_part(plain[: match.start()], plain[match.end() :]))
        for match in _FOUND.finditer(plain)
    ]


def _is_part(before: str, after: str) -> bool:
    if _FORMULA_BEFORE.search(before[-12:]):
        return True
    variable = _FORMULA_AFTER.match(after)
    return variable is not None and variable["letter"] not in _UNIT_LETTERS


def only_number(text: str) -> PlainNumber | None:
    """Return the number that a text is, with its unit; None where it says anything else."""
    plain = re.sub(r"^\s*\\?[A-Za-z]\w*\s*(?:=|\\approx|\u2248)", "", _plainer(text)).strip()
    plain = plain.rstrip(" .")
    found = list(_FOUND.finditer(plain))
    if len(found) != 1:
        return None
    before, after = plain[: found[0].start()].strip(), plain[found[0].end() :]
    if before not in ("", "$", "~", "=") or not _is_unit(after):
        return None
    return _number(found[0])


def _plainer(text: str) -> str:
    """Return a text without the LaTeX that numbers are dressed in."""
    text = _NO_SPACE.sub(lambda match: "," if match[0] == "{,}" else "", text)
    text = _TEXT_COMMAND.sub(r" \1 ", text)
    text = text.replace("\\$", "$").replace("\\left", "").replace("\\right", "")
    text = re.sub(r"\\\(|\\\)|\\\[|\\\]|\$(?!\s?\.?\d)|\^\s*\{?\s*\\circ\s*\}?|\\degree", " ", text)
    return _SIMPLE_FRACTION.sub(_as_quotient, _UNIT_POWER.sub("", text))


def _as_quotient(match: re.Match[str]) -> str:
    top, bottom = (match[1], match[2]) if match[1] else (match[3], match[4])
    before = match.string[: match.start()].rstrip()
    return f"{' ' if before[-1:].isdigit() else ''}{top}/{bottom}"


def _is_unit(text: str) -> bool:
    """Whether a text behind a number names a unit rather than goes on with a formula."""
    words = re.sub(r"[\^*/()]|(?<=[A-Za-z])-?\d", " ", text).split()
    if not all(_UNIT.fullmatch(word.rstrip(",")) for word in words):
        return False
    return all(len(word) > 1 or word in _UNIT_LETTERS or not word.isalpha() for word in words)


def _number(match: re.Match[str]) -> PlainNumber | None:
    if len(match[0]) > _MAX_DIGITS:
        return None
    try:
        if match["whole"]:
            value = Fraction(match["whole"]) + Fraction(int(match["over"]), int(match["under"]))
        elif match["top"]:
            value = _decimal(match["top"]) / _decimal(match["bottom"])
        else:
            value = _decimal(match["number"]) ** int(match["exponent"] or 1)
            value *= _power(match["power"])
    except ZeroDivisionError:
        return None
    value *= _SCALES.get((match["scale"] or "").lower(), 1)
    sign = -1 if (match["sign"] or "").strip() in ("-", "\u2212") else 1
    return PlainNumber(sign * value, is_percent=match["percent"] is not None)


def _decimal(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))


def _power(text: str | None) -> Fraction:
    if text is None:
        return Fraction(1)
    exponent = re.findall(r"-?\d+", text)[-1]
    return Fraction(10) ** int(exponent)


def _close(one: Fraction, other: Fraction) -> bool:
    return abs(one - other) <= _TOLERANCE * max(abs(one), abs(other))
