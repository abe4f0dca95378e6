"""The directions of one chunk of a trajectory: every checkpoint read once, none of them kept."""

from __future__ import annotations

import threading

import torch

from expo_ray.checkpoints.formats.header import DTYPE_BITS
from expo_ray.errors import ShardError
from expo_ray.extrapolation.arithmetic.directions import DirectionSums
from expo_ray.extrapolation.arithmetic.statistics import count_nonfinite
from expo_ray.extrapolation.pairing.tensor_pair import TensorPair
from expo_ray.extrapolation.planning.alpha import round_alpha
from expo_ray.extrapolation.planning.plan import computes_float64
from expo_ray.extrapolation.shards.chunk_errors import nonfinite_input
from expo_ray.extrapolation.shards.chunk_reader import ChunkReader
from expo_ray.extrapolation.shards.chunks import Chunk
from expo_ray.extrapolation.shards.tasks import ShardTask

Ends = tuple[torch.Tensor, torch.Tensor]
"""The first and the last checkpoint, which the slot of a chunk holds already."""


class _Lane(threading.local):
    """What one thread works with."""

    def __init__(self) -> None:
        self.sums = DirectionSums()
        self.buffer = torch.empty(0, dtype=torch.uint8)

    def bytes_for(self, num_bytes: int) -> torch.Tensor:
        if self.buffer.numel() < num_bytes:
            self.buffer = torch.empty(num_bytes, dtype=torch.uint8)
        return self.buffer


class ChunkDirections:
    """Sums the directions of a task over its checkpoints; safe to share between threads."""

    def __init__(self, task: ShardTask, reader: ChunkReader) -> None:
        self._task = task
        self._reader = reader
        self._lane = _Lane()

    def sum(self, pair: TensorPair, chunk: Chunk, ends: Ends) -> list[torch.Tensor]:
        """Return one sum per direction, in buffers of the thread.

        Args:
            pair: The tensor.
            chunk: Which of its elements.
            ends: Of the first and the last checkpoint, in the dtype of the file.
        """
        is_wide = computes_float64(pair)
        rows = [direction.of(pair.name) for direction in self._task.directions]
        rows = rows if is_wide else [tuple(map(round_alpha, row)) for row in rows]
        weights = list(zip(*rows, strict=True))
        initial, aligned = ends
        dtype = torch.float64 if is_wide else torch.float32
        sums = self._lane.sums.begin(initial, len(rows), dtype)
        for index in range(len(pair.between)):
            values = self._read(pair, index, chunk)
            self._lane.sums.add(sums, values, weights[index + 1])
        self._lane.sums.add(sums, aligned, weights[-1])
        return sums

    def nonfinite(self, pair: TensorPair, chunk: Chunk, ends: Ends) -> ShardError | None:
        """Return the refusal of a chunk by the checkpoint that is not finite; None where all are.

        Reads the chunk once more: which checkpoint it was is not told by a sum.
        """
        first, last = self._task.end_labels
        labels = (first, *self._task.between, last)
        for index, label in enumerate(labels):
            if index in (0, len(labels) - 1):
                values = ends[bool(index)]
            else:
                values = self._read(pair, index - 1, chunk)
            num_bad = count_nonfinite(values)
            if num_bad:
                return nonfinite_input(pair, num_bad, [f"{label} ({self._task.uris[index]})"])
        return None

    def _read(self, pair: TensorPair, index: int, chunk: Chunk) -> torch.Tensor:
        num_bytes = chunk.num_elements * (DTYPE_BITS[pair.between[index].dtype] // 8)
        buffer = self._lane.bytes_for(num_bytes)
        return self._reader.read_between(pair, index, chunk, buffer)
