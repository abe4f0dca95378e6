"""Reads one chunk of a tensor on every side that it needs, into the buffers of its slot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from expo_ray.checkpoints.formats.header import DTYPE_BITS, TensorRef
from expo_ray.checkpoints.tensors import TORCH_DTYPES
from expo_ray.extrapolation.pairing.tensor_pair import TensorPair
from expo_ray.extrapolation.shards.chunks import Chunk, Slot
from expo_ray.extrapolation.shards.input_files import InputFiles


class Sides(NamedTuple):
    """The elements of a chunk, flat, each side in the dtype it is stored in."""

    base: torch.Tensor
    """What delta is added to, or what is copied: aligned, or another model under `--onto`."""
    pair: tuple[torch.Tensor, torch.Tensor] | None
    """(initial, aligned); None where the chunk is copied."""


class ChunkReader:
    """Reads from the input files of a task; safe to share between threads."""

    def __init__(self, inputs: InputFiles, labels: Sequence[str] = ()) -> None:
        self._inputs = inputs
        self._labels = labels

    @property
    def uris(self) -> tuple[str, ...]:
        """The checkpoints that are read, for errors."""
        return tuple(self._inputs.uris)

    def read(self, pair: TensorPair, chunk: Chunk, slot: Slot) -> Sides:
        """Read what the output of a chunk is computed or copied from.

        Raises:
            CheckpointError: An input is missing.
            ShardError: An input ends too early, or changed.
        """
        onto = self._read("onto", pair.onto, chunk, slot.onto) if pair.onto else None
        if chunk.initial_start is None or pair.initial is None:
            if onto is None:
                onto = self._read("aligned", pair.aligned, chunk, slot.aligned)
            return Sides(onto, None)
        initial, aligned = self.read_pair(pair, pair.initial, chunk, slot)
        return Sides(aligned if onto is None else onto, (initial, aligned))

    def read_pair(
        self, pair: TensorPair, initial: TensorRef, chunk: Chunk, slot: Slot
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Read (initial, aligned) of a chunk that is extrapolated."""
        aligned = self._read("aligned", pair.aligned, chunk, slot.aligned)
        return self._read("initial", initial, chunk, slot.initial), aligned

    def read_between(
        self, pair: TensorPair, index: int, chunk: Chunk, buffer: torch.Tensor
    ) -> torch.Tensor:
        """Read one of the checkpoints between the two, by its number among these."""
        return self._read(self._labels[index], pair.between[index], chunk, buffer)

    def _read(self, side: str, ref: TensorRef, chunk: Chunk, buffer: torch.Tensor) -> torch.Tensor:
        item_bytes = DTYPE_BITS[ref.dtype] // 8
        raw = buffer[: chunk.num_elements * item_bytes]
        is_partner = side not in ("aligned", "onto")
        start = chunk.initial_start or 0 if is_partner else chunk.start
        self._inputs.read(side, ref, start * item_bytes, raw)
        return raw.view(TORCH_DTYPES[ref.dtype])
