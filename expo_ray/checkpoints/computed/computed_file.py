"""A weight file with tensors behind its last byte that are computed while they are read.

What they are made of differs (an adapter's sum, dequantized blocks); where they appear and how a
read of any place and length finds its rows does not.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Generic, Self, TypeVar

import torch

from expo_ray.checkpoints.formats.header import DTYPE_BITS, TensorRef
from expo_ray.checkpoints.storages.storage import FileFacts, RangeReader
from expo_ray.checkpoints.tensors import TORCH_DTYPES

BLOCK_ELEMENTS = 65_536
ITEM_BYTES = 4

# Threads may be at two tensors at a time; factors of a high rank take many megabytes.
_MIN_CACHED, _MAX_CACHED = 2, 4
_MAX_CACHED_BYTES = 32 * 1024 * 1024

Source = TypeVar("Source")
Parts = TypeVar("Parts")


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
        place = replace(
            ref,
            dtype="F32",
            offset_bytes=position,
            num_bytes=num_bytes,
            stored_dtype=ref.dtype,
        )
        found.append(ComputedTensor(ref=place, base=ref, source=source))
        position += num_bytes
    return tuple(found)


class ComputedReader(Generic[Source, Parts]):
    """Ranged reads of a stored file and of computed tensors; safe to share between threads."""

    def __init__(self, base: RangeReader, items: Sequence[ComputedTensor[Source]]) -> None:
        self.may_compile = False
        """Set by whoever will read so much that compiled arithmetic is worth its start."""
        self._base = base
        self._items = items
        self._base_bytes = base.facts.num_bytes
        self._parts: OrderedDict[str, Parts] = OrderedDict()
        self._lock = threading.Lock()
        self.facts = self.describe(base.facts)

    def describe(self, base: FileFacts) -> FileFacts:
        """Return the facts of the whole from those of the stored file."""
        raise NotImplementedError

    def stored(self, item: ComputedTensor[Source]) -> tuple[RangeReader, TensorRef]:
        """Return where the rows lie that a computed tensor starts from."""
        return self._base, item.base

    def load_parts(self, item: ComputedTensor[Source]) -> Parts:
        """Read what else a tensor is made of; kept for the last few tensors."""
        raise NotImplementedError

    def compute(self, rows: torch.Tensor, first: int, parts: Parts, source: Source) -> torch.Tensor:
        """Return computed rows, contiguous float32.

        Args:
            rows: As many rows as stored.
            first: The number of the first of them.
            parts: What `load_parts` returned.
            source: What the tensor is made of.
        """
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
        num_columns = item.base.shape[1]
        row_bytes = num_columns * ITEM_BYTES
        end_bytes = start_bytes + len(buffer)
        start_row, end_row = start_bytes // row_bytes, -(-end_bytes // row_bytes)
        # One read for all: a store far away takes as long for a block as for a chunk.
        rows = self._read_rows(item, start_row, end_row)
        parts = self._cached_parts(item)
        step = max(1, BLOCK_ELEMENTS // num_columns)
        for first in range(start_row, end_row, step):
            last = min(first + step, end_row)
            stored = rows[first - start_row : last - start_row]
            block = self.compute(stored, first, parts, item.source)
            raw = block.reshape(-1).view(torch.uint8).numpy().data
            low, high = max(start_bytes, first * row_bytes), min(end_bytes, last * row_bytes)
            part = raw[low - first * row_bytes : high - first * row_bytes]
            buffer[low - start_bytes : high - start_bytes] = part

    def _read_rows(self, item: ComputedTensor[Source], first: int, last: int) -> torch.Tensor:
        reader, ref = self.stored(item)
        row_bytes = ref.shape[1] * DTYPE_BITS[ref.dtype] // 8
        raw = torch.empty((last - first) * row_bytes, dtype=torch.uint8)
        reader.read_into(ref.offset_bytes + first * row_bytes, raw.numpy().data)
        return raw.view(TORCH_DTYPES[ref.dtype]).reshape(last - first, -1)

    def _cached_parts(self, item: ComputedTensor[Source]) -> Parts:
        name = item.ref.name
        with self._lock:
            if name not in self._parts:
                self._parts[name] = self.load_parts(item)
                while len(self._parts) > _MAX_CACHED or (
                    len(self._parts) > _MIN_CACHED
                    and sum(map(_num_bytes, self._parts.values())) > _MAX_CACHED_BYTES
                ):
                    self._parts.popitem(last=False)
            return self._parts[name]


def _num_bytes(parts: object) -> int:
    tensors = parts if isinstance(parts, tuple) else (parts,)
    return sum(tensor.nbytes for tensor in tensors)
