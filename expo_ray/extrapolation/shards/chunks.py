"""How the tensors of a shard are cut into runs of elements that fit into small buffers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from expo_ray.checkpoints.formats.header import DTYPE_BITS, tensor_bytes
from expo_ray.extrapolation.pairing.tensor_pair import TensorPair
from expo_ray.extrapolation.shards.tasks import ShardTask


@dataclass(frozen=True, kw_only=True, slots=True)
class Chunk:
    """A run of elements of one tensor."""

    index: int
    """Of the tensor in the shard."""
    start: int
    num_elements: int
    offset_bytes: int
    """Where the output bytes start in the file."""
    initial_start: int | None = None
    """Where initial has these elements; None where they are copied from aligned."""
    position: int = 0
    """Of the first element among those of the tensor that are extrapolated."""
    is_scales: bool = False
    """No elements, but the scales of all FP8 blocks of the tensor, when these are done."""


class Slot:
    """Buffers for one chunk in flight."""

    def __init__(self, chunk_bytes: int, num_outputs: int, *, has_onto: bool = False) -> None:
        self.initial = torch.empty(chunk_bytes, dtype=torch.uint8)
        self.aligned = torch.empty(chunk_bytes, dtype=torch.uint8)
        self.onto = torch.empty(chunk_bytes if has_onto else 0, dtype=torch.uint8)
        self.outputs = [torch.empty(chunk_bytes, dtype=torch.uint8) for _ in range(num_outputs)]


def split_chunks(task: ShardTask, chunk_bytes: int) -> Iterator[Chunk]:
    """Cut the tensors of a shard into chunks, in the order of the file."""
    offset_bytes = len(task.shard.header)
    for index, pair in enumerate(task.shard.tensors):
        step = chunk_bytes // max(widths_of(pair))
        if pair.blocks is not None and task.outputs and pair.aligned.num_elements:
            row = pair.blocks.block_row_elements(pair.aligned.shape)
            step = max(1, step // row) * row
        yield from tensor_chunks(pair, index, step, offset_bytes)
        if pair.blocks is not None and task.outputs and pair.aligned.num_elements:
            codes_bytes = tensor_bytes(pair.output_dtype, pair.aligned.shape)
            yield Chunk(
                index=index,
                start=0,
                num_elements=0,
                offset_bytes=offset_bytes + codes_bytes,
                is_scales=True,
            )
        offset_bytes += pair.output_bytes


def widths_of(pair: TensorPair) -> set[int]:
    """Return the bytes of an element in everything that a chunk of the tensor is held as."""
    dtypes = {pair.base.dtype, pair.aligned.dtype, pair.output_dtype}
    dtypes |= {pair.initial.dtype} if pair.initial else set()
    return {DTYPE_BITS[dtype] // 8 for dtype in dtypes}


def tensor_chunks(pair: TensorPair, index: int, step: int, offset_bytes: int) -> Iterator[Chunk]:
    """Cut one tensor into chunks, in the order of the file.

    Args:
        pair: The tensor.
        index: Of the tensor in the shard.
        step: The most elements of a chunk.
        offset_bytes: Where its output starts in the file.
    """
    item_bytes = DTYPE_BITS[pair.output_dtype] // 8
    position = 0
    for segment in pair.segments:
        for start in range(0, segment.num_elements, step):
            first = segment.initial_start
            chunk = Chunk(
                index=index,
                start=segment.start + start,
                num_elements=min(step, segment.num_elements - start),
                offset_bytes=offset_bytes + (segment.start + start) * item_bytes,
                initial_start=None if first is None else first + start,
                position=position,
            )
            if first is not None:
                position += chunk.num_elements
            yield chunk
