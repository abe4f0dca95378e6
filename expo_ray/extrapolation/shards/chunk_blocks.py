"""FP8 blocks of an output: the values of a chunk become codes, their scales are kept.

Scales stand behind the codes of their tensor in the file, and several threads are at one tensor.
"""

from __future__ import annotations

import threading

import torch

from expo_ray.checkpoints.computed.fused_fp8 import fused_fp8
from expo_ray.checkpoints.formats.fp8_format import BlockFormat
from expo_ray.checkpoints.tensors import TORCH_DTYPES
from expo_ray.extrapolation.arithmetic.requantization import requantize
from expo_ray.extrapolation.arithmetic.statistics import DeltaSums
from expo_ray.extrapolation.pairing.tensor_pair import TensorPair
from expo_ray.extrapolation.shards.chunk_errors import overflow
from expo_ray.extrapolation.shards.chunks import Chunk
from expo_ray.extrapolation.shards.tasks import ShardTask


class BlockWriter:
    """Requantizes chunks and keeps the scales of tensors that are not whole yet, per output."""

    def __init__(self, task: ShardTask) -> None:
        self._outputs = task.outputs
        self._may_compile = task.may_compile
        self._lock = threading.Lock()
        self._scales: dict[int, list[torch.Tensor]] = {}

    def requantize(
        self,
        pair: TensorPair,
        chunk: Chunk,
        aligned: torch.Tensor,
        outputs: list[torch.Tensor],
        sums: DeltaSums,
    ) -> None:
        """Replace the float32 values of a chunk by codes; the rounding goes into the sums.

        Raises:
            ShardError: A scale does not fit its dtype.
        """
        if pair.blocks is None:
            return
        num_columns = pair.aligned.shape[1]
        first = chunk.start // num_columns // pair.blocks.block_rows
        fused = fused_fp8() if self._may_compile else None
        scales = self._scales_of(chunk.index, pair.blocks, pair.aligned.shape)
        for index, values in enumerate(outputs):
            try:
                outputs[index], sums.outputs[index] = requantize(
                    values.view(-1, num_columns),
                    aligned.view(-1, num_columns),
                    scales[index][first:],
                    pair.blocks,
                    fused,
                )
            except OverflowError as error:
                raise overflow(pair, self._outputs[index], 1) from error

    def take_scales(self, index: int) -> list[torch.Tensor]:
        """Return the scales of a tensor whose codes are all done, flat, one per output."""
        return [scales.view(-1) for scales in self._scales.pop(index)]

    def _scales_of(
        self, index: int, blocks: BlockFormat, shape: tuple[int, ...]
    ) -> list[torch.Tensor]:
        with self._lock:
            if index not in self._scales:
                size, dtype = blocks.scales_of(shape), TORCH_DTYPES[blocks.scale_dtype]
                self._scales[index] = [torch.empty(size, dtype=dtype) for _ in self._outputs]
            return self._scales[index]
