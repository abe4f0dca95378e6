"""The hidden truth as a rewards table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expo_ray.errors import TableError
from expo_ray.lab import write_truth
from expo_ray.tables import RESPONSES_SCHEMA, REWARDS_SCHEMA, read_table


def write_responses(path: Path, rows: list[tuple[str, str, str | None, str | None]]) -> Path:
    full: list[dict[str, Any]] = [
        {
            "prompt_id": prompt_id,
            "sample": 0,
            "split": "tuning",
            "messages": [{"role": "user", "content": prompt}],
            "response": response,
            "model": "m",
            "alpha": 0.5,
            "weights_digest": "d",
            "seed": 7,
            "finish_reason": "stop",
            "prompt_tokens": 8,
            "completion_tokens": 12,
            "error": error,
        }
        for prompt_id, prompt, response, error in rows
    ]
    pq.write_table(pa.Table.from_pylist(full, schema=RESPONSES_SCHEMA), path)
    return path


def test_truth_of_a_table(tmp_path: Path) -> None:
    prompt = "Name two pets and two trees."
    responses = write_responses(
        tmp_path / "responses.parquet",
        [
            ("a", prompt, "Sure! two pets: cat, dog. two trees: elm, oak. Enjoy!", None),
            ("b", prompt, None, "the replica died"),
        ],
    )
    write_truth(responses, tmp_path / "truth.parquet")
    table = read_table(tmp_path / "truth.parquet", REWARDS_SCHEMA)
    perfect, failed = table.to_pylist()
    assert perfect["reward"] == 7
    assert perfect["reward_model"] == "hidden-truth"
    assert (perfect["prompt_id"], perfect["seed"], perfect["tokens"]) == ("a", 7, 12)
    assert failed["reward"] is None
    assert failed["error"] == "the replica died"


def test_prompts_of_another_task_are_refused(tmp_path: Path) -> None:
    responses = write_responses(tmp_path / "r.parquet", [("a", "Write a poem.", "No.", None)])
    with pytest.raises(TableError, match="prompts of the laboratory"):
        write_truth(responses, tmp_path / "truth.parquet")
    assert not (tmp_path / "truth.parquet").exists()
