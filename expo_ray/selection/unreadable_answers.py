"""Wrong answers that a check could not even read, told apart from those that it read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from expo_ray.selection.samples import reward_model
from expo_ray.selection.table_keys import canonical_alpha

UNREADABLE = "unreadable"
"""Column of rewards that tells what such an answer lacks."""
_MANY = 0.01
"""Share of a candidate's answers from which on it is a warning."""


def unreadable_answers(rewards: Mapping[str, pa.Table]) -> list[dict[str, Any]]:
    """Return how many answers of each candidate a check could not read, on all prompts.

    Args:
        rewards: By folder name of the reward model, "" for the scoring one. Where none was
            unreadable, and of what is no check, nothing is told.
    """
    found = []
    for name, table in rewards.items():
        if UNREADABLE not in table.column_names or table[UNREADABLE].null_count == table.num_rows:
            continue
        for alpha in sorted(pc.unique(table["alpha"].drop_null()).to_pylist()):
            part = table.filter(pc.equal(table["alpha"], alpha))
            counted = pc.value_counts(part[UNREADABLE].cast(pa.string()).drop_null()).to_pylist()
            found.append(
                {
                    "guard": name or None,
                    "reward_model": reward_model(table),
                    "alpha": canonical_alpha(alpha),
                    "num_answers": part.num_rows,
                    "num_unreadable": sum(one["counts"] for one in counted),
                    "lacks": {one["values"]: one["counts"] for one in counted},
                }
            )
    return found


def warn_of_unreadable(found: list[dict[str, Any]]) -> list[str]:
    """Return a sentence for each check that many answers of some candidate could not be read by."""
    told: dict[str, list[str]] = {}
    for one in found:
        if one["num_unreadable"] > _MANY * one["num_answers"]:
            told.setdefault(one["reward_model"], []).append(
                f"{one['num_unreadable']} of {one['num_answers']} at alpha {one['alpha']:g} "
                f"({', '.join(sorted(one['lacks']))})"
            )
    return [
        f"{name} could not read all answers, which count as wrong: {'; '.join(texts)}"
        for name, texts in told.items()
    ]
