"""The kinds of checks there are. A new one is a file beside this one and a line below."""

from __future__ import annotations

from expo_ray.rewards.checks.code import CODE
from expo_ray.rewards.checks.constraints import CONSTRAINTS
from expo_ray.rewards.checks.exact import EXACT
from expo_ray.rewards.checks.http_service import HTTP
from expo_ray.rewards.checks.json_schema import JSON_SCHEMA
from expo_ray.rewards.checks.kind import CheckKind
from expo_ray.rewards.checks.number import NUMBER
from expo_ray.rewards.checks.python_function import PYTHON
from expo_ray.rewards.checks.regex import REGEX

CHECK_KINDS: dict[str, CheckKind] = {
    kind.name: kind for kind in (EXACT, NUMBER, REGEX, JSON_SCHEMA, CONSTRAINTS, CODE, PYTHON, HTTP)
}
"""By name, in the order in which errors and the documentation tell of them."""


def check_forms() -> str:
    """Return how checks are written: `check:exact, ... or ...`."""
    *first, last = (kind.form for kind in CHECK_KINDS.values())
    return f"{', '.join(first)} or {last}"
