"""Rows of the rewards table, made of rows of the responses table and their scores."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from expo_ray.rewards import RewardScore
from expo_ray.rewards.checks.reward_model import as_reference
from expo_ray.rewards.interface import Chat
from expo_ray.tables import RESPONSES_SCHEMA, Message
from expo_ray.tables.schemas import require_schema
from expo_ray.tables.streamed import iter_batches, parquet_files
from expo_ray.tables.thoughts import AUTO, Reasoning

KEY = ("prompt_id", "sample", "weights_digest")
CHUNK_ROWS = 64
"""Most responses that a replica is handed at once; it makes batches of them."""


@dataclass(frozen=True, slots=True)
class ReferenceTable:
    """What responses are compared with, by prompt and sample."""

    responses: dict[tuple[str, int], str]
    digest: str

    def of(self, row: dict[str, Any]) -> str | None:
        """Return what a response is compared with; None where there is nothing."""
        return self.responses.get((row["prompt_id"], row["sample"]))


class CheckedColumns:
    """What responses are checked against: columns beside them, by row."""

    def of(self, row: dict[str, Any]) -> str | None:
        """Return what a response is checked against; None where there is nothing."""
        return as_reference(row)


def read_references(path: str | Path | None, reasoning: Reasoning = AUTO) -> ReferenceTable:
    """Read the responses that others are compared with; those with an error are left out.

    Args:
        path: Their table.
        reasoning: How thoughts are marked, which are no part of them.

    Raises:
        TableError: The table is missing or malformed.
    """
    files = [] if path is None else parquet_files(path)
    for file in files:
        require_schema(file, RESPONSES_SCHEMA)
    responses: dict[tuple[str, int], str] = {}
    wanted = ["prompt_id", "sample", "response", "error"]
    for file in files:
        columns = [*wanted, *({"thought"} & {*pq.read_schema(file).names})]
        for row in (row for batch in iter_batches([file], columns) for row in batch.to_pylist()):
            if row["error"] is None and row["response"] is not None:
                responses[row["prompt_id"], row["sample"]] = _answer(row, reasoning)
    digest = hashlib.sha256(repr(sorted(responses.items())).encode()).hexdigest()
    return ReferenceTable(responses, digest)


def is_scorable(row: dict[str, Any]) -> bool:
    """Whether there is a chat to score; a template would write an absent text as `None`."""
    turns = row["messages"] or ()
    texts = [row["response"], *(turn["content"] for turn in turns)]
    return row["error"] is None and len(turns) > 0 and all(text is not None for text in texts)


def chat_of(row: dict[str, Any], reasoning: Reasoning = AUTO) -> list[Message]:
    """Return the chat that a response ends: its answers, no thoughts.

    Args:
        row: Of a responses table; a thought that it tells apart already is not looked for again.
        reasoning: How thoughts are marked.
    """
    return [
        *reasoning.without_thoughts(row["messages"]),
        Message(role="assistant", content=_answer(row, reasoning)),
    ]


def _answer(row: dict[str, Any], reasoning: Reasoning) -> str:
    response = str(row["response"])
    return response if row.get("thought") is not None else reasoning.answer(response)


def num_chars(chat: Chat) -> int:
    """Return the length by which chats are laid together, before anything is tokenized."""
    return sum(len(turn["content"]) for turn in chat)


def reward_rows(
    rows: Sequence[dict[str, Any]], scores: Sequence[RewardScore], *, name: str, revision: str
) -> list[dict[str, Any]]:
    """Return the rewards of responses; without scores, of responses that have none.

    Args:
        rows: The responses.
        scores: Their scores, or nothing for rows that cannot be scored.
        name: The reward model's name.
        revision: What pins it.
    """
    found = scores or [
        RewardScore.failed(f"no response: {row['error'] or 'the row has no text'}") for row in rows
    ]
    return [
        {
            **{column: row[column] for column in (*KEY, "split", "alpha", "seed")},
            "reward": score.reward,
            "tokens": score.tokens,
            "truncated": score.truncated,
            "error": score.error,
            "unreadable": score.unreadable,
            "reward_model": name,
            "reward_model_revision": revision,
        }
        for row, score in zip(rows, found, strict=True)
    ]
