"""Batches of token ids: rows of like length together, padded on the right, scored as they fit.

Padding is bounded batch by batch, so that the share of a whole job cannot exceed it either.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from expo_ray.rewards.interface import RewardScore

MAX_PADDING = 0.03
"""Most of a batch's tokens that may be padding."""
MAX_BATCH_TOKENS = 16_384
MAX_BATCH_ROWS = 64


@dataclass(frozen=True, slots=True)
class TokenRow:
    """One chat as a model reads it."""

    ids: list[int]
    start: int = 0
    """Where the part begins that a model looks at in particular; what that is, it says."""
    truncated: bool = False
    """Whether tokens were left out to make it fit."""

    def cut(self, max_tokens: int) -> TokenRow:
        """Return the row as a model of so many tokens reads it: its first token and its end."""
        left_out = len(self.ids) - max_tokens
        if left_out <= 0:
            return self
        ids = [self.ids[0], *self.ids[left_out + 1 :]]
        return TokenRow(ids, start=max(self.start - left_out, 1), truncated=True)


def length_buckets(
    lengths: Sequence[int],
    *,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    max_batch_rows: int = MAX_BATCH_ROWS,
    max_padding: float = MAX_PADDING,
) -> Iterator[list[int]]:
    """Yield batches of row numbers, longest rows first.

    Args:
        lengths: Tokens of each row.
        max_batch_tokens: Most tokens of a batch, padding included; one row is always allowed.
        max_batch_rows: Most rows of a batch.
        max_padding: Most of a batch's tokens that are padding.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    batch: list[int] = []
    num_real = 0
    for row in order:
        width = lengths[batch[0]] if batch else lengths[row]
        area = width * (len(batch) + 1)
        padding = area - num_real - lengths[row]
        full = len(batch) == max_batch_rows or area > max_batch_tokens
        if batch and (full or padding > max_padding * area):
            yield batch
            batch, num_real = [], 0
        batch.append(row)
        num_real += lengths[row]
    if batch:
        yield batch


def pad_right(
    rows: Sequence[Sequence[int]], *, pad_id: int, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (input_ids_BT, attention_mask_BT).

    Args:
        rows: Token ids.
        pad_id: What fills the right end; masked out.
        device: Where the tensors are put.
    """
    width = max(len(row) for row in rows)
    ids_bt = torch.tensor([[*row, *[pad_id] * (width - len(row))] for row in rows], device=device)
    mask_bt = torch.tensor(
        [[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device
    )
    return ids_bt, mask_bt


def score_rows(
    rows: Sequence[TokenRow | RewardScore],
    rewards_of: Callable[[list[TokenRow]], list[float]],
    *,
    max_tokens: int | None,
    num_token_ids: int | None = None,
    truncates: bool = False,
    max_batch_tokens: int = MAX_BATCH_TOKENS,
    max_batch_rows: int = MAX_BATCH_ROWS,
    max_padding: float = MAX_PADDING,
) -> list[RewardScore]:
    """Return the scores of rows in the order given, computed in batches of like length.

    Args:
        rows: What can be read, or why it cannot.
        rewards_of: Computes one batch.
        max_tokens: How many tokens the model reads; longer rows are refused.
        num_token_ids: How many tokens have an embedding; a row with any other is refused, because
            one look-up of it breaks a GPU for the whole process.
        truncates: Cut the beginning of longer rows instead, and say so in their scores.
        max_batch_tokens: Most tokens of a batch.
        max_batch_rows: Most rows of a batch.
        max_padding: Most of a batch's tokens that are padding.
    """
    scores: dict[int, RewardScore] = {}
    readable: list[tuple[int, TokenRow]] = []
    for i, row in enumerate(rows):
        if truncates and isinstance(row, TokenRow) and max_tokens is not None:
            row = row.cut(max_tokens)
        if isinstance(row, RewardScore):
            scores[i] = row
        elif not row.ids:
            scores[i] = RewardScore.failed("the chat has no tokens")
        elif max_tokens is not None and len(row.ids) > max_tokens:
            scores[i] = _too_long(len(row.ids), max_tokens)
        elif num_token_ids is not None and max(row.ids) >= num_token_ids:
            scores[i] = _unknown_token(row, num_token_ids)
        else:
            readable.append((i, row))
    for bucket in length_buckets(
        [len(row.ids) for _, row in readable],
        max_batch_tokens=max_batch_tokens,
        max_batch_rows=max_batch_rows,
        max_padding=max_padding,
    ):
        batch = [readable[position] for position in bucket]
        rewards = _fitting([row for _, row in batch], rewards_of)
        for (i, row), reward in zip(batch, rewards, strict=True):
            scores[i] = _finite_score(reward, row)
    return [scores[i] for i in range(len(rows))]


def _fitting(
    rows: list[TokenRow], rewards_of: Callable[[list[TokenRow]], list[float]]
) -> list[float | str]:
    """Compute a batch, in halves where it fails; a row that fails alone is named."""
    try:
        return list(rewards_of(rows))
    except torch.AcceleratorError:
        raise  # the device is lost to this process: other rows would fail as well
    except torch.OutOfMemoryError as error:
        if len(rows) == 1:
            return [f"the device has too little memory for this chat: {error}"]
    except (RuntimeError, IndexError) as error:
        if len(rows) == 1:
            return [f"the reward model fails on this chat: {error}"]
    half = len(rows) // 2
    return _fitting(rows[:half], rewards_of) + _fitting(rows[half:], rewards_of)


def _too_long(num_tokens: int, max_tokens: int) -> RewardScore:
    return RewardScore(
        reward=None,
        tokens=num_tokens,
        truncated=True,
        error=f"the chat has {num_tokens} tokens, the reward model reads {max_tokens}",
    )


def _unknown_token(row: TokenRow, num_token_ids: int) -> RewardScore:
    return RewardScore.failed(
        f"the tokenizer gives token {max(row.ids)}, the reward model knows 0 to "
        f"{num_token_ids - 1}",
        tokens=len(row.ids),
    )


def _finite_score(reward: float | str, row: TokenRow) -> RewardScore:
    if isinstance(reward, str):
        return RewardScore.failed(reward, tokens=len(row.ids))
    if math.isfinite(reward):
        return RewardScore(reward=reward, tokens=len(row.ids), truncated=row.truncated)
    return RewardScore.failed(f"the reward is {reward}", tokens=len(row.ids))
