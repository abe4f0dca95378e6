"""The hidden truth of responses, in the form of a rewards table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expo_ray.lab.settings import CODE_VERSION
from expo_ray.lab.task import truth_reward
from expo_ray.tables import REWARDS_SCHEMA, ResumableTable, read_table

TRUTH_NAME = "hidden-truth"
_CARRIED = ("prompt_id", "sample", "split", "alpha", "weights_digest", "seed")


def write_truth(responses: Path, output: Path) -> None:
    """Score every response of a table by the task's own rules.

    Args:
        responses: A responses table of the laboratory's prompts.
        output: Rewards table to write, with reward model `hidden-truth`.

    Raises:
        TableError: The responses table is malformed.
    """
    rows = [_score(row) for row in read_table(responses).to_pylist()]
    table = ResumableTable(output, REWARDS_SCHEMA, key=("prompt_id", "sample", "weights_digest"))
    table.append(rows)
    table.finish()


def _score(row: dict[str, Any]) -> dict[str, Any]:
    failed = row["error"] is not None or row["response"] is None
    return {
        **{column: row[column] for column in _CARRIED},
        "reward": None if failed else truth_reward(row["messages"], row["response"]),
        "reward_model": TRUTH_NAME,
        "reward_model_revision": f"code-{CODE_VERSION}",
        "tokens": row["completion_tokens"],
        "truncated": False,
        "error": row["error"],
    }
