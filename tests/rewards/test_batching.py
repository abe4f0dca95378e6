import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from expo_ray.rewards.batching import (
    MAX_BATCH_TOKENS,
    MAX_PADDING,
    TokenRow,
    length_buckets,
    score_rows,
)
from expo_ray.rewards.pretrained import ChatTokenizer
from tests import samples
from tests.pico import pico_tokenizer


@given(st.lists(st.integers(1, 400), max_size=120), st.integers(1, 3000), st.floats(0, 0.5))
def test_batches_keep_every_bound(lengths: list[int], budget: int, max_padding: float) -> None:
    batches = list(
        length_buckets(lengths, max_batch_tokens=budget, max_batch_rows=16, max_padding=max_padding)
    )
    assert sorted(row for batch in batches for row in batch) == list(range(len(lengths)))
    for batch in batches:
        sizes = [lengths[row] for row in batch]
        area = max(sizes) * len(batch)
        assert len(batch) <= 16
        assert area <= budget or len(batch) == 1
        assert area - sum(sizes) <= max_padding * area


def test_equal_lengths_fill_the_batch() -> None:
    assert [len(b) for b in length_buckets([100] * 200, max_batch_rows=64)] == [64, 64, 64, 8]


def test_our_responses_are_padded_by_at_most_3_percent() -> None:
    _check_padding(samples.outputs(400))


@pytest.mark.parametrize("name", ["tulu-2-dpo-70b", "zephyr_0.2_a2.5", "zephyr-7b-sft-full"])
def test_published_responses_are_padded_by_at_most_3_percent(
    published_data: Path, name: str
) -> None:
    outputs = published_data / f"alpaca_eval/outputs/{name}.json"
    _check_padding(json.loads(outputs.read_text("utf-8"))[:400])


def _check_padding(rows: list[dict[str, str]]) -> None:
    tokenizer = ChatTokenizer(pico_tokenizer(), where="here")
    lengths = [
        len(
            tokenizer.ids(
                [
                    {"role": "user", "content": row["instruction"]},
                    {"role": "assistant", "content": row["output"]},
                ]
            )
        )
        for row in rows
    ]
    batches = list(length_buckets(lengths))
    area = sum(max(lengths[row] for row in batch) * len(batch) for batch in batches)
    assert 1 - sum(lengths) / area <= MAX_PADDING == 0.03
    assert len(lengths) / len(batches) > 3, "padding is not kept low by batches of one"
    assert area / len(batches) > MAX_BATCH_TOKENS / 3, "the budget is used"


def test_a_batch_that_does_not_fit_the_device_is_halved() -> None:
    sizes = []

    def rewards_of(rows: list[TokenRow]) -> list[float]:
        sizes.append(len(rows))
        if len(rows) > 2 or rows[0].ids[0] == 9:
            raise torch.OutOfMemoryError("full")
        return [float(row.ids[0]) for row in rows]

    rows = [TokenRow([i, 0, 0]) for i in (1, 2, 3, 9, 5)]
    scores = score_rows(rows, rewards_of, max_tokens=None)
    assert [score.reward for score in scores] == [1.0, 2.0, 3.0, None, 5.0]
    assert "memory" in str(scores[3].error)
    assert sizes[0] == 5


def test_a_row_that_breaks_its_batch_is_named_and_stops_no_other() -> None:
    def rewards_of(rows: list[TokenRow]) -> list[float]:
        if any(row.ids[0] == 9 for row in rows):
            raise RuntimeError("shape mismatch")
        return [float(row.ids[0]) for row in rows]

    rows = [TokenRow([i, 0, 0]) for i in (1, 2, 9, 4)]
    scores = score_rows(rows, rewards_of, max_tokens=None)
    assert [score.reward for score in scores] == [1.0, 2.0, None, 4.0]
    assert "shape mismatch" in str(scores[2].error)


def test_a_broken_device_ends_the_work() -> None:
    # After such an error nothing works in this process: nulls for all rows would be no answer.
    def rewards_of(rows: list[TokenRow]) -> list[float]:
        raise torch.AcceleratorError("device-side assert")

    with pytest.raises(torch.AcceleratorError):
        score_rows([TokenRow([1]), TokenRow([2])], rewards_of, max_tokens=None)


def test_a_cut_row_keeps_its_first_token_and_its_end() -> None:
    row = TokenRow([1, 2, 3, 4, 5, 6], start=4)
    assert row.cut(6) is row
    assert row.cut(4) == TokenRow([1, 4, 5, 6], start=2, truncated=True)
    assert row.cut(2) == TokenRow([1, 6], start=1, truncated=True)
    scores = score_rows([row], lambda rows: [float(rows[0].ids[1])], max_tokens=4, truncates=True)
    assert (scores[0].reward, scores[0].tokens, scores[0].truncated) == (4.0, 4, True)


def test_token_ids_that_the_model_does_not_know_are_refused_before_it_sees_them() -> None:
    def rewards_of(rows: list[TokenRow]) -> list[float]:
        assert all(max(row.ids) < 10 for row in rows)
        return [float(row.ids[0]) for row in rows]

    rows = [TokenRow([1, 9]), TokenRow([2, 10]), TokenRow([])]
    fine, unknown, empty = score_rows(rows, rewards_of, max_tokens=None, num_token_ids=10)
    assert fine.reward == 1.0
    assert (unknown.reward, unknown.tokens) == (None, 2)
    assert "token 10" in str(unknown.error)
    assert empty.reward is None
