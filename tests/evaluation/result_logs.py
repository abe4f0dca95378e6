"""Logs as other harnesses write them, small ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from expo_ray.tables.schemas import REWARDS_SCHEMA
from tests import samples


def harness_log(
    path: Path, scores: Sequence[float | None], *, metric: str = "acc", **changes: Any
) -> Path:
    """Write samples of lm-evaluation-harness; `changes` by field, of every line."""
    lines = [
        {
            "doc_id": i,
            "doc": {"question": f"question {i}", "passage": f"p{i // 4}"},
            "target": "4",
            "arguments": {"gen_args_0": {"arg_0": "Q", "arg_1": {}}},
            "resps": [["4"]],
            "filtered_resps": ["4"],
            "filter": "none",
            "metrics": [metric],
            "doc_hash": f"hash {i}",
            "prompt_hash": f"prompt {i}",
            "target_hash": "t",
            metric: score,
            **changes,
        }
        for i, score in enumerate(scores)
    ]
    samples.write_lines(path, lines)
    return path


def inspect_log(
    path: Path,
    values: Sequence[Any],
    *,
    task: str = "arithmetic",
    status: str = "success",
    model: str = "openai/one",
) -> Path:
    """Write a log of inspect in its JSON form."""
    document = {
        "version": 2,
        "status": status,
        "eval": {"task": task, "model": model, "dataset": {"name": "numbers"}},
        "samples": [
            {
                "id": i + 1,
                "epoch": 1,
                "input": [{"id": f"{path.name}-{i}", "role": "user", "content": f"{i} + 1?"}],
                "target": str(i + 1),
                "metadata": {"page": i // 3},
                "scores": {"match": {"value": value, "answer": "2"}},
            }
            for i, value in enumerate(values)
        ],
    }
    path.write_text(json.dumps(document))
    return path


def rewards_table(
    path: Path,
    rewards: Mapping[str, Sequence[float | None]],
    *,
    alpha: float = 0.0,
    revision: str = "blake3:rm",
) -> Path:
    """Write a rewards table: the samples' rewards by prompt."""
    rows = [
        {
            "prompt_id": prompt,
            "sample": sample,
            "split": "heldout",
            "alpha": alpha,
            "weights_digest": f"blake3:{alpha}",
            "seed": 1,
            "reward": reward,
            "reward_model": "./rm",
            "reward_model_revision": revision,
            "tokens": 9,
            "truncated": False,
            "error": None if reward is not None else "failed",
        }
        for prompt, given in rewards.items()
        for sample, reward in enumerate(given)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=REWARDS_SCHEMA), path)
    return path
