"""One chunk of one tensor: read every side, compute every alpha, write. Runs in several threads."""

from __future__ import annotations

from expo_ray.extrapolation.arithmetic.statistics import DeltaSums
from expo_ray.extrapolation.shards.chunk_blocks import BlockWriter
from expo_ray.extrapolation.shards.chunk_compute import ChunkComputer, Computed, Spread
from expo_ray.extrapolation.shards.chunk_reader import ChunkReader
from expo_ray.extrapolation.shards.chunks import Chunk, Slot
from expo_ray.extrapolation.shards.input_files import InputFiles
from expo_ray.extrapolation.shards.shard_files import ShardFile
from expo_ray.extrapolation.shards.tasks import ShardTask


class ChunkWorker:
    """Passes chunks from the inputs to the files of a shard."""

    def __init__(self, task: ShardTask, inputs: InputFiles, files: list[ShardFile]) -> None:
        self._tensors = task.shard.tensors
        self._files = files
        self._reader = ChunkReader(inputs, tuple(task.between))
        self._computer = ChunkComputer(task, self._reader)
        self._blocks = BlockWriter(task)

    def prepare(self, index: int, spread: Spread = map) -> None:
        """Let the transforms look at a whole tensor, before its first chunk and alone.

        Args:
            index: Of the tensor in the shard.
            spread: Does the blocks of it.
        """
        self._computer.prepare(index, spread)

    def run(self, chunk: Chunk, slot: Slot) -> tuple[DeltaSums, list[memoryview]]:
        """Work on one chunk and return its sums and the bytes to hash, one per output."""
        pair = self._tensors[chunk.index]
        name = pair.name
        if chunk.is_scales and pair.blocks is not None:
            name = pair.blocks.scale_name(name)
            sums, outputs = DeltaSums(), self._blocks.take_scales(chunk.index)
        else:
            sums, outputs = self._compute(chunk, slot)
        views = [
            file.put(chunk.offset_bytes, output, name)
            for file, output in zip(self._files, outputs, strict=True)
        ]
        return sums, views

    def _compute(self, chunk: Chunk, slot: Slot) -> Computed:
        pair = self._tensors[chunk.index]
        sides = self._reader.read(pair, chunk, slot)
        sums, outputs = self._computer.compute(pair, chunk, sides, slot)
        if sides.pair is not None:
            self._blocks.requantize(pair, chunk, sides.pair[1], outputs, sums)
        return sums, outputs
