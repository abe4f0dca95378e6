"""Tables of responses and rewards from their files, as little of them as choosing alpha needs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from expo_ray.selection.samples import RESPONSE_COLUMNS, REWARD_COLUMNS
from expo_ray.selection.unreadable_answers import UNREADABLE
from expo_ray.tables.schemas import read_table

_REPEATING = ("split", "weights_digest", "finish_reason", "error", "reward_model", UNREADABLE)
"""Few different texts in very many rows: each is held once per file."""
_LATER = ("messages", "thought", "thought_tokens")


def read_responses(files: Iterable[Path]) -> pa.Table:
    """Read the responses of all candidates for `join_tables`.

    Of a thought stays whether there is one: it may be many times as long as its answer.

    Raises:
        TableError: A file is missing or not Parquet.
    """
    columns = (*RESPONSE_COLUMNS, *_LATER)
    tables = []
    for file in files:
        table = read_table(file, columns=columns, repeating=_REPEATING)
        if "thought" in table.column_names:
            is_there = pc.is_valid(table["thought"])
            told = pc.if_else(is_there, pa.scalar(""), pa.scalar(None, pa.string()))
            table = table.set_column(table.column_names.index("thought"), "thought", told)
        tables.append(table)
    return _laid_together(tables)


def read_rewards(files: Iterable[Path]) -> pa.Table:
    """Read the rewards of all candidates under one reward model for `join_tables`.

    Raises:
        TableError: A file is missing or not Parquet.
    """
    return _laid_together(
        read_table(file, columns=(*REWARD_COLUMNS, UNREADABLE), repeating=_REPEATING)
        for file in files
    )


def _laid_together(tables: Iterable[pa.Table]) -> pa.Table:
    # Older tables lack the later columns, which are null there.
    whole = pa.concat_tables(tables, promote_options="default")
    pa.default_memory_pool().release_unused()
    return whole
