"""The benchmark of batches measures those that replicas make."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.reward_batching import served_batches, token_rows
from expo_ray.rewards.batching import MAX_PADDING
from expo_ray.serving.reward_rows import CHUNK_ROWS


@pytest.mark.parametrize("name", ["tulu-2-dpo-70b", "zephyr-7b-sft-full"])
def test_published_responses_in_the_chunks_that_replicas_get(shared_data: Path, name: str) -> None:
    rows = token_rows(shared_data / f"alpaca_eval/outputs/{name}.json", 805)
    lengths = [len(row) for row in rows]
    batches = list(served_batches(lengths))
    assert sorted(row for batch in batches for row in batch) == list(range(len(rows)))
    assert max(map(len, batches)) <= CHUNK_ROWS
    area = sum(max(lengths[row] for row in batch) * len(batch) for batch in batches)
    assert 1 - sum(lengths) / area <= MAX_PADDING
