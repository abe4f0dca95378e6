"""`check:regex=PATTERN`: the response holds what a regular expression describes."""

from __future__ import annotations

import re

from expo_ray.errors import ConfigError, argument
from expo_ray.rewards.checks.kind import Arguments, Check, Checked, CheckKind, unusable_check

_FORM = "check:regex=PATTERN"


class RegexCheck(Check):
    """Searches the response; `^...$` binds the pattern to all of it, `(?i)` ignores case."""

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(pattern)

    def reward(self, checked: Checked) -> float:
        """Return whether the pattern is found."""
        return float(self._pattern.search(checked.response) is not None)


def _parse(pattern: str | None) -> Arguments:
    if not pattern:
        raise unusable_check("check:regex", _FORM)
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ConfigError(
            "a check's pattern is no regular expression",
            where=argument("reward_model"),
            got=f"{pattern}: {error}",
            expected="a regular expression of Python's module re",
        ) from error
    return {"pattern": pattern}


def _open(arguments: Arguments) -> Check:
    return RegexCheck(arguments["pattern"])


REGEX = CheckKind(name="regex", form=_FORM, parse=_parse, open=_open)
