"""The hidden truth of responses, in the form of a rewards table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expo_ray.errors import TableError
from expo_ray.lab.tasks.interface import LabTask
from expo_ray.lab.tasks.registry import TASKS
from expo_ray.tables import RESPONSES_SCHEMA, REWARDS_SCHEMA, ResumableTable, read_table

TRUTH_NAME = "hidden-truth"
_CARRIED = ("prompt_id", "sample", "split", "alpha", "weights_digest", "seed")


def write_truth(
    responses_path: str | Path, output_path: str | Path, *, task: str = "lists"
) -> None:
    """Score every response of a table by the hidden rule.

    Args:
        responses_path: Responses to prompts of the laboratory.
        output_path: Rewards table to write, with reward model `hidden-truth`.
        task: Name of the laboratory's task.

    Raises:
        TableError: The responses table is malformed, or has prompts of another task.
    """
    responses = read_table(responses_path, RESPONSES_SCHEMA).to_pylist()
    try:
        rows = [_score(row, TASKS[task]) for row in responses]
    except ValueError as error:
        raise TableError(
            "only prompts of the laboratory have a hidden truth", where=responses_path, got=error
        ) from error
    key = ("prompt_id", "sample", "weights_digest")
    table = ResumableTable(output_path, REWARDS_SCHEMA, key=key)
    table.append(rows)
    table.finish()


def _score(row: dict[str, Any], task: LabTask) -> dict[str, Any]:
    failed = row["error"] is not None
    return {
        **{column: row[column] for column in _CARRIED},
        "reward": None if failed else task.truth(row["messages"], row["response"]),
        "reward_model": TRUTH_NAME,
        "reward_model_revision": task.truth_version,
        "tokens": row["completion_tokens"],
        "truncated": False,
        "error": row["error"],
        "unreadable": None,
    }
