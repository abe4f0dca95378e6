"""Batches of token ids: rows of like length together, padded on the right."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch


def length_buckets(
    lengths: Sequence[int], *, max_batch_tokens: int, max_batch_rows: int
) -> Iterator[list[int]]:
    """Yield batches of row numbers, longest rows first.

    Args:
        lengths: Tokens of each row.
        max_batch_tokens: Most tokens of a batch, padding included; one row is always allowed.
        max_batch_rows: Most rows of a batch.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    start = 0
    while start < len(order):
        rows = max(1, min(max_batch_rows, max_batch_tokens // max(1, lengths[order[start]])))
        yield order[start : start + rows]
        start += rows


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
