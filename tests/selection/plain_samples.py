"""The join of responses and rewards row by row, in plain Python: what the fast one must equal."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from expo_ray.selection.repetition import repeated_share
from expo_ray.selection.samples import SPLITS, FloatArray, SplitSamples, made_from_pair
from expo_ray.selection.table_keys import canonical_alpha
from expo_ray.selection.text_signs import changes_language, echoes, last_question, leaks_markers
from expo_ray.tables.thoughts import is_unanswered

Key = tuple[float, str, int]


def plain_join(
    responses: pa.Table, rewards: pa.Table, guard_rewards: Mapping[str, pa.Table], **_: Any
) -> dict[str, SplitSamples]:
    """Return what `join_tables` must return for tables that belong together."""
    rows = by_key(responses)
    scores = finite_rewards(rewards)
    guards = {name: finite_rewards(table) for name, table in guard_rewards.items()}
    peers = sorted(
        name
        for name, table in guard_rewards.items()
        if not made_from_pair(table["reward_model"][0].as_py())
    )
    return {split: samples_of(split, rows, scores, guards, tuple(peers)) for split in SPLITS}


def by_key(table: pa.Table) -> dict[Key, dict[str, Any]]:
    return {
        (canonical_alpha(row["alpha"]), row["prompt_id"], row["sample"]): row
        for row in table.to_pylist()
    }


def finite_rewards(table: pa.Table) -> dict[Key, float]:
    return {
        key: row["reward"]
        for key, row in by_key(table).items()
        if row["reward"] is not None and math.isfinite(row["reward"])
    }


def samples_of(
    split: str,
    rows: Mapping[Key, dict[str, Any]],
    scores: Mapping[Key, float],
    guards: Mapping[str, Mapping[Key, float]],
    peers: tuple[str, ...],
) -> SplitSamples:
    alphas = tuple(sorted({key[0] for key in rows}))
    keys = sorted({key[1:] for key, row in rows.items() if row["split"] == split})
    prompts = sorted({prompt for prompt, _ in keys})

    def scored(found: Mapping[Key, float]) -> FloatArray:
        return np.array([[found.get((a, *key), math.nan) for key in keys] for a in alphas])

    def measured(read: Callable[[dict[str, Any]], Any]) -> FloatArray:
        fine = {key: read(row) for key, row in rows.items() if row["error"] is None}
        return scored({key: float(value) for key, value in fine.items() if value is not None})

    def sign(tells: Callable[[str, str], bool]) -> FloatArray:
        return measured(
            lambda row: (
                None
                if row["messages"] is None
                else tells(last_question(row["messages"]), row["response"] or "")
            )
        )

    return SplitSamples(
        alphas=alphas,
        prompt_of_key=np.array([prompts.index(prompt) for prompt, _ in keys]),
        num_prompts=len(prompts),
        rewards=scored(scores),
        guard_rewards={name: scored(found) for name, found in guards.items()},
        peers=peers,
        tokens=measured(lambda row: row["completion_tokens"] - (row.get("thought_tokens") or 0)),
        thought_tokens=measured(lambda row: row.get("thought_tokens")),
        truncated=measured(lambda row: row["finish_reason"] == "length" or is_unanswered(row)),
        repetition=measured(lambda row: repeated_share(row["response"] or "")),
        echoes=sign(echoes),
        markers=sign(leaks_markers),
        drifts=sign(changes_language),
        present=np.array([[(a, *key) in rows for key in keys] for a in alphas]),
    )
