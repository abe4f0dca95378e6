"""The benchmark of batches measures those that replicas make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.reward_batching import served_batches, token_rows
from expo_ray.rewards.batching import MAX_PADDING
from expo_ray.serving.reward_rows import CHUNK_ROWS
from tests import samples


def test_our_responses_in_the_chunks_that_replicas_get() -> None:
    _check_chunks(token_rows(samples.outputs(805)))


@pytest.mark.parametrize("name", ["tulu-2-dpo-70b", "zephyr-7b-sft-full"])
def test_published_responses_in_the_chunks_that_replicas_get(
    published_data: Path, name: str
) -> None:
    outputs = published_data / f"alpaca_eval/outputs/{name}.json"
    _check_chunks(token_rows(json.loads(outputs.read_text("utf-8"))))


def _check_chunks(rows: list[list[int]]) -> None:
    lengths = [len(row) for row in rows]
    batches = list(served_batches(lengths))
    assert sorted(row for batch in batches for row in batch) == list(range(len(rows)))
    assert max(map(len, batches)) <= CHUNK_ROWS
    area = sum(max(lengths[row] for row in batch) * len(batch) for batch in batches)
    assert 1 - sum(lengths) / area <= MAX_PADDING
