"""`check:constraints`: the response keeps to what its prompt asks of its form, as in IFEval.

`constraints` is a JSON list of objects: `{"id": "length_constraints:number_words", "num_words": 50,
"relation": "at least"}`. Strict reads the response as it is; loose is satisfied where it keeps to a
constraint without its first line, its last line, or its asterisks.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import cache
from typing import Any

from pydantic import ValidationError

from expo_ray.json_text import parse_json
from expo_ray.rewards.checks.constraint_rules import RULES
from expo_ray.rewards.checks.kind import (
    Arguments,
    BrokenCheckError,
    Check,
    Checked,
    CheckKind,
    Trial,
    unusable_check,
)

_MODES = ("strict", "loose", "strict-share", "loose-share")
_FORM = f"check:constraints or check:constraints={'|'.join(_MODES)}"


class ConstraintsCheck(Check):
    """Looks at each constraint.

    Args:
        is_loose: Whether variants of the response may keep to it instead.
        shares: Whether the reward is the share of constraints that are kept, not all or nothing.
    """

    def __init__(self, *, is_loose: bool, shares: bool) -> None:
        self._is_loose, self._shares = is_loose, shares

    def reward(self, checked: Checked) -> float:
        """Return whether the response keeps to all constraints, or the share of them it does."""
        rules = _read_constraints(checked.columns["constraints"])
        variants = _variants(checked.response) if self._is_loose else [checked.response]
        kept = [any(text.strip() and rule(text) for text in variants) for rule in rules]
        return sum(kept) / len(kept) if self._shares else float(all(kept))

    def unreadable(self, checked: Checked) -> str | None:
        """Return that the response is empty."""
        return None if checked.response.strip() else "no answer: the response is empty"

    def target_fault(self, target: str) -> str | None:
        """Return why constraints cannot be checked."""
        try:
            _read_constraints(target)
        except BrokenCheckError as error:
            return str(error)
        return None


def _variants(response: str) -> list[str]:
    lines = response.split("\n")
    parts = (lines, lines[1:], lines[:-1], lines[1:-1])
    texts = [response, *("\n".join(part).strip() for part in parts[1:])]
    return [*texts, *(text.replace("*", "") for text in texts)]


@cache
def _read_constraints(target: str) -> list[Callable[[str], bool]]:
    """Return the constraints of a prompt as functions of a response.

    Raises:
        BrokenCheckError: One is unknown or malformed.
    """
    try:
        constraints = parse_json(target)
    except ValueError as error:
        raise BrokenCheckError(f"`constraints` is no JSON: {error}") from error
    if not isinstance(constraints, list) or not constraints:
        raise BrokenCheckError("`constraints` is no list, or an empty one")
    return [_read_constraint(one) for one in constraints]


def _read_constraint(constraint: Any) -> Callable[[str], bool]:
    if not isinstance(constraint, dict) or constraint.get("id") not in RULES:
        name = constraint.get("id") if isinstance(constraint, dict) else constraint
        close = difflib.get_close_matches(str(name), RULES, n=1)
        meant = f", did you mean {close[0]!r}?" if close else ""
        raise BrokenCheckError(f"no such constraint: {name!r:.80}{meant}")
    rule = RULES[constraint["id"]]
    settings = {name: value for name, value in constraint.items() if name != "id"}
    try:
        rule("", **settings)
    except ValidationError as error:
        told = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise BrokenCheckError(f"{constraint['id']}: {told}") from error
    return lambda text: rule(text, **settings)


def _parse(mode: str | None) -> Arguments:
    if mode is not None and mode not in _MODES:
        raise unusable_check(f"check:constraints={mode}", _FORM)
    return {"mode": mode or "strict"}


def _open(arguments: Arguments) -> Check:
    mode = arguments["mode"]
    return ConstraintsCheck(is_loose=mode.startswith("loose"), shares=mode.endswith("share"))


_SHORT = '[{"id": "length_constraints:number_words", "num_words": 4, "relation": "less than"}]'
CONSTRAINTS = CheckKind(
    name="constraints",
    form=_FORM,
    parse=_parse,
    open=_open,
    column="constraints",
    trials=(
        Trial(response="Three words, then.", target=_SHORT, is_right=True),
        Trial(response="These are four words", target=_SHORT, is_right=False),
    ),
)
