"""A weight file with tensors behind its last byte that are computed while they are read.

What they are made of differs (an adapter's sum, dequantized blocks); where they appear and how a
read of any place and length finds its rows does not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Self, TypeVar

import torch

from expo_ray.checkpoints.header import TensorRef
from expo_ray.checkpoints.storage import FileFacts, RangeReader

BLOCK_ELEMENTS = 65_536
ITEM_BYTES = 4

Source = TypeVar("Source")


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputedTensor(Generic[Source]):
    """A matrix in float32: where it appears, and what it is made of."""

    ref: TensorRef
    """F32, behind the bytes of the file."""
    base: TensorRef
    """The stored tensor."""
    source: Source


def lay_out_behind(
    items: Iterable[tuple[TensorRef, Source]], file_bytes: int
) -> tuple[ComputedTensor[Source], ...]:
    """Return where computed tensors appear behind the bytes of their file, by name."""
    found = []
    position = file_bytes
    for ref, source in sorted(items, key=lambda item: item[0].name):
        num_bytes = ref.num_elements * ITEM_BYTES
        place = replace(ref, dtype="F32", offset_bytes=position, num_bytes=num_bytes)
        found.append(ComputedTensor(ref=place, base=ref, source=source))
        position += num_bytes
    return tuple(found)


class ComputedReader(Generic[Source]):
    """Ranged reads of a stored file and of computed tensors; safe to share between threads."""

    def __init__(self, base: RangeReader, items: Sequence[ComputedTensor[Source]]) -> None:
        self._base = base
        self._items = items
        self._base_bytes = base.facts.num_bytes
        self.facts = self.describe(base.facts)

    def compute_rows(self, item: ComputedTensor[Source], first: int, last: int) -> torch.Tensor:
        """Return some rows of a tensor, contiguous float32."""
        raise NotImplementedError

    def describe(self, base: FileFacts) -> FileFacts:
        """Return the facts of the whole from those of the stored file."""
        raise NotImplementedError

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill the whole buffer from an absolute offset."""
        if offset_bytes + len(buffer) <= self._base_bytes:
            self._base.read_into(offset_bytes, buffer)
            return
        for item in self._items:
            start = offset_bytes - item.ref.offset_bytes
            if start >= 0 and start + len(buffer) <= item.ref.num_bytes:
                self._read_computed(item, start, buffer)
                return
        raise EOFError(f"{self.facts.name} holds no single tensor at byte {offset_bytes}")

    def refresh(self) -> FileFacts:
        """Return the facts as they are now."""
        return self.describe(self._base.refresh())

    def close(self) -> None:
        """Release the file."""
        self._base.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _read_computed(
        self, item: ComputedTensor[Source], start_bytes: int, buffer: memoryview
    ) -> None:
        if not len(buffer):
            return
        row_bytes = item.base.shape[1] * ITEM_BYTES
        end_bytes = start_bytes + len(buffer)
        end_row = -(-end_bytes // row_bytes)
        step = max(1, BLOCK_ELEMENTS // item.base.shape[1])
        for first in range(start_bytes // row_bytes, end_row, step):
            last = min(first + step, end_row)
            rows = self.compute_rows(item, first, last).reshape(-1).view(torch.uint8).numpy().data
            low, high = max(start_bytes, first * row_bytes), min(end_bytes, last * row_bytes)
            part = rows[low - first * row_bytes : high - first * row_bytes]
            buffer[low - start_bytes : high - start_bytes] = part
