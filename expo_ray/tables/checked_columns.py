"""What answers are checked against: columns of prompts, kept as text beside each response.

`answer` is the right one, `constraints` what an answer has to keep to (as in IFEval), `tests` what
a program has to pass. What is not text becomes JSON, so that one type of column holds every form.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from expo_ray.errors import TableError
from expo_ray.tables.turns import text_of

CHECKED_COLUMNS = ("answer", "constraints", "tests")
"""Optional columns of a responses table, after those that each has."""
IFEVAL_COLUMNS = ("instruction_id_list", "kwargs")
"""The two columns that stand for `constraints` in the data set of IFEval."""


def read_checked(
    row: Mapping[str, object], columns: Mapping[str, str], where: str
) -> dict[str, str]:
    """Return what the answer to a row is checked against, by our names of the columns.

    Args:
        row: Of a file of prompts.
        columns: The file's names of our columns.
        where: The row, for errors.

    Raises:
        TableError: The columns of IFEval do not fit each other.
    """
    found = {}
    for name in CHECKED_COLUMNS:
        value = row.get(columns.get(name, name))
        if value is None and name == "constraints" and name not in columns:
            value = _of_ifeval(row, where)
        if value is not None and value == value:  # a number that is none, of pandas, is no answer
            found[name] = _text(value, f"{where}, {name}")
    return found


def _of_ifeval(row: Mapping[str, object], where: str) -> object:
    names, kwargs = (row.get(name) for name in IFEVAL_COLUMNS)
    if not isinstance(names, list) or not isinstance(kwargs, list):
        return None
    if len(names) != len(kwargs):
        raise TableError(
            "instruction_id_list and kwargs have different lengths",
            where=where,
            got=f"{len(names)} and {len(kwargs)}",
            expected="one object of kwargs for each instruction",
        )
    return [{"id": name, **_given(one)} for name, one in zip(names, kwargs, strict=True)]


def _given(kwargs: object) -> dict[str, object]:
    """Return the arguments that are set: Parquet fills up every object with nulls."""
    given = kwargs if isinstance(kwargs, dict) else {}
    return {str(key): value for key, value in given.items() if value is not None}


def _text(value: object, where: str) -> str:
    if isinstance(value, str):
        return text_of(value, where)
    # Dates and the like, of Parquet, are written as they are shown.
    return json.dumps(value, ensure_ascii=False, default=str)
