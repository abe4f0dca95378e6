"""Small response and reward tables, built from one number per prompt and alpha."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

Row = dict[str, Any]


def make_rows(
    rewards: Mapping[float, Sequence[float | None]],
    *,
    num_tuning: int,
    num_samples: int = 1,
    edit: Callable[[Row], None] | None = None,
    tokens: Mapping[float, int] | None = None,
) -> list[Row]:
    """One row per (alpha, prompt, sample) with the columns of both tables.

    `rewards[alpha]` lists prompts in order, the samples of a prompt next to each other; the first
    `num_tuning` prompts are tuning prompts.
    """
    rows = []
    for alpha, values in rewards.items():
        for i, reward in enumerate(values):
            prompt, sample = divmod(i, num_samples)
            row = {
                "prompt_id": f"p{prompt:04d}",
                "sample": sample,
                "split": "tuning" if prompt < num_tuning else "heldout",
                "response": "a short answer",
                "alpha": alpha,
                "weights_digest": f"digest-{alpha:g}",
                "finish_reason": "stop",
                "completion_tokens": (tokens or {}).get(alpha, 20),
                "error": None,
                "reward": reward,
                "reward_model": "rm",
            }
            if edit is not None:
                edit(row)
            rows.append(row)
    return rows


RESPONSES = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("split", pa.string()),
        ("response", pa.string()),
        ("alpha", pa.float64()),
        ("weights_digest", pa.string()),
        ("finish_reason", pa.string()),
        ("completion_tokens", pa.int64()),
        ("error", pa.string()),
    ]
)
CHAT_RESPONSES = RESPONSES.append(
    pa.field("messages", pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())])))
)
REWARDS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("alpha", pa.float64()),
        ("weights_digest", pa.string()),
        ("reward", pa.float64()),
        ("reward_model", pa.string()),
    ]
)


def responses_of(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=RESPONSES)


def rewards_of(rows: list[Row]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=REWARDS)


def noisy_rewards(
    gains: Mapping[float, float | tuple[float, float]],
    *,
    num_tuning: int = 60,
    num_heldout: int = 60,
    noise: float = 1.0,
    seed: int = 0,
) -> dict[float, list[float]]:
    """Rewards with a shared part per prompt; a pair of gains means (tuning, heldout)."""
    rng = np.random.default_rng(seed)
    n = num_tuning + num_heldout
    base = rng.normal(0, 3, n)
    made = {0.0: list(base)}
    for alpha, gain in gains.items():
        tuning, heldout = gain if isinstance(gain, tuple) else (gain, gain)
        shift = np.where(np.arange(n) < num_tuning, tuning, heldout)
        made[alpha] = list(base + shift + rng.normal(0, noise, n))
    return made
