"""From the sides of a chunk to its output values, one per alpha, and what was measured of them."""

from __future__ import annotations

import functools
import math
import threading
from collections import Counter
from collections.abc import Iterator, Sequence

import torch

from expo_ray.checkpoints.formats.header import FLOAT_DTYPES, tensor_bytes
from expo_ray.checkpoints.tensors import TORCH_DTYPES
from expo_ray.extrapolation.arithmetic.formula import BLOCK_ELEMENTS, Block, Workspace
from expo_ray.extrapolation.arithmetic.fused_kernel import Dtypes, fused_kernel
from expo_ray.extrapolation.arithmetic.statistics import (
    DeltaSums,
    OutputSums,
    count_overflows,
    measure_direction,
    measure_inputs,
    measure_output,
)
from expo_ray.extrapolation.arithmetic.transforms import Stage
from expo_ray.extrapolation.pairing.tensor_pair import TensorPair
from expo_ray.extrapolation.planning.alpha import round_alpha
from expo_ray.extrapolation.planning.plan import computes_float64, used_bytes
from expo_ray.extrapolation.shards.chunk_directions import ChunkDirections
from expo_ray.extrapolation.shards.chunk_errors import nonfinite_input, overflow
from expo_ray.extrapolation.shards.chunk_reader import ChunkReader, Sides
from expo_ray.extrapolation.shards.chunks import Chunk, Slot, tensor_chunks
from expo_ray.extrapolation.shards.tasks import ShardOutput, ShardTask

# A norm's weights in float32 are not worth a compilation of a second.
MIN_COMPILED_SHARE = 0.1

Computed = tuple[DeltaSums, list[torch.Tensor]]


class ChunkComputer:
    """Applies the formula; one workspace per thread and compute dtype."""

    def __init__(self, task: ShardTask, reader: ChunkReader) -> None:
        self._task = task
        self._reader = reader
        self._local = threading.local()
        self._directions = ChunkDirections(task, reader)
        self._compiled = worth_compiling(task)
        self._stages: list[Stage] = []

    def prepare(self, index: int) -> None:
        """Let the transforms look at a whole tensor, before its first chunk and alone.

        Args:
            index: Of the tensor in the shard.

        Raises:
            ShardError: An input is not finite.
        """
        pair = self._task.shard.tensors[index]
        self._stages = []
        if pair.initial is None:
            return
        for transform in self._task.transforms:
            blocks = functools.partial(self._deltas, index, tuple(self._stages))
            self._stages.append(transform.prepare(pair, blocks))

    def compute(self, pair: TensorPair, chunk: Chunk, sides: Sides, slot: Slot) -> Computed:
        """Return the sums of a chunk and its values, one tensor per output, in the slot's buffers.

        Args:
            pair: The tensor.
            chunk: Which of its elements.
            sides: What was read.
            slot: Whose output buffers are filled.

        Raises:
            ShardError: An input is not finite, or a result does not fit its dtype.
        """
        if sides.pair is None:
            return self._copy(pair, sides.base, slot)
        initial, aligned = sides.pair
        outputs = self._targets(pair, aligned.numel(), slot)
        alphas = self._alphas(pair)
        measured = self._run_kernel(sides, outputs, alphas)
        if measured is not None:
            return measured, outputs
        directions = self._directions_of(pair, chunk, sides.pair)
        sums = DeltaSums()
        for start in range(0, aligned.numel(), BLOCK_ELEMENTS):
            part = slice(start, start + BLOCK_ELEMENTS)
            base = None if sides.base is aligned else sides.base[part]
            block = self._workspace(pair).load(initial[part], aligned[part], base)
            measured = measure_inputs(block, initial[part], aligned[part])
            if base is not None:
                measured.num_nonfinite += _count_nonfinite(base)
            self._check_finite(pair, measured.num_nonfinite)
            targets = [output[part] for output in outputs]
            measured.outputs = [OutputSums() for _ in targets]
            for index, values in enumerate(directions or [None]):
                if values is not None:
                    block.delta.copy_(values[part])
                self._transform(block, chunk.position + start, measured)
                moved = None if values is None else measure_direction(block)
                for number, output in enumerate(self._task.outputs):
                    if output.direction == index:
                        counted = self._write(
                            pair, block, sides.base[part], targets[number], alphas[number], output
                        )
                        counted.direction = moved
                        measured.outputs[number] = counted
            sums.add(measured)
        return sums, outputs

    def _directions_of(
        self, pair: TensorPair, chunk: Chunk, ends: tuple[torch.Tensor, torch.Tensor]
    ) -> list[torch.Tensor]:
        """Return what takes the place of delta, one per direction; none where nothing does."""
        if not self._task.directions:
            return []
        found = self._directions.sum(pair, chunk, ends)
        # What is not finite anywhere shows in the sum; a sum that overflows finds nobody guilty.
        are_finite = all(math.isfinite(float(values.sum())) for values in found)
        if not are_finite and not self._task.allow_nonfinite:
            error = self._directions.nonfinite(pair, chunk, ends)
            if error is not None:
                raise error
        return found

    def _alphas(self, pair: TensorPair) -> list[float]:
        alphas = [output.alpha_of(pair.name) for output in self._task.outputs]
        return alphas if computes_float64(pair) else [round_alpha(alpha) for alpha in alphas]

    def _run_kernel(
        self, sides: Sides, outputs: list[torch.Tensor], alphas: list[float]
    ) -> DeltaSums | None:
        """Fill the outputs in one compiled pass; None where it cannot be, or is not sure."""
        if sides.pair is None or sides.base is not sides.pair[1]:
            return None
        initial, aligned = sides.pair
        dtypes = Dtypes(initial.dtype, aligned.dtype, (outputs or [aligned])[0].dtype)
        if dtypes not in self._compiled:
            return None
        measures = self._task.needs_statistics
        kernel = fused_kernel(dtypes, len(outputs), measures=measures)
        if kernel is None:
            return None
        return kernel.run(initial, aligned, outputs, alphas, measures=measures)

    def _transform(self, block: Block, position: int, measured: DeltaSums) -> None:
        for stage in self._stages:
            stage(block.delta, position)
        if self._stages:
            measured.num_kept = int(torch.count_nonzero(block.delta))

    def _write(
        self,
        pair: TensorPair,
        block: Block,
        base: torch.Tensor,
        target: torch.Tensor,
        alpha: float,
        output: ShardOutput,
    ) -> OutputSums:
        block.write(alpha, target)
        counted = measure_output(target, base)
        if counted.num_nonfinite and not self._task.allow_overflow:
            self._check_overflow(pair, output, count_overflows(block, target))
        return counted

    def _copy(self, pair: TensorPair, base: torch.Tensor, slot: Slot) -> Computed:
        sums = DeltaSums(outputs=[OutputSums() for _ in self._task.outputs])
        if pair.base.dtype not in FLOAT_DTYPES:
            return sums, [base.view(torch.uint8)] * len(self._task.outputs)
        sums.num_nonfinite = _count_nonfinite(base)
        self._check_finite(pair, sums.num_nonfinite)
        outputs = self._targets(pair, base.numel(), slot)
        for index, target in enumerate(outputs):
            target.copy_(base)
            sums.outputs[index].num_nonfinite = num_lost = _count_nonfinite(target)
            if not self._task.allow_overflow:
                overflows = num_lost - sums.num_nonfinite
                self._check_overflow(pair, self._task.outputs[index], overflows)
        return sums, outputs

    def _deltas(self, index: int, stages: Sequence[Stage]) -> Iterator[tuple[int, torch.Tensor]]:
        """Pass over the delta of one tensor, as the stages before leave it."""
        pair = self._task.shard.tensors[index]
        slot = Slot(8 * BLOCK_ELEMENTS, 0)
        for chunk in tensor_chunks(pair, index, BLOCK_ELEMENTS, 0):
            if chunk.initial_start is None or pair.initial is None:
                continue
            initial, aligned = self._reader.read_pair(pair, pair.initial, chunk, slot)
            delta = self._workspace(pair).load(initial, aligned).delta
            for values in self._directions_of(pair, chunk, (initial, aligned)):
                delta.copy_(values)
            if num_bad := _count_nonfinite(delta):
                raise nonfinite_input(pair, num_bad, self._reader.uris)
            for stage in stages:
                stage(delta, chunk.position)
            yield chunk.position, delta

    def _targets(self, pair: TensorPair, n: int, slot: Slot) -> list[torch.Tensor]:
        dtype = _computed_dtype(pair)
        num_bytes = tensor_bytes(dtype, (n,))
        return [raw[:num_bytes].view(TORCH_DTYPES[dtype]) for raw in slot.outputs]

    def _workspace(self, pair: TensorPair) -> Workspace:
        dtype = torch.float64 if computes_float64(pair) else torch.float32
        spaces: dict[torch.dtype, Workspace] = self._local.__dict__.setdefault("spaces", {})
        if dtype not in spaces:
            spaces[dtype] = Workspace(dtype)
        return spaces[dtype]

    def _check_finite(self, pair: TensorPair, num_bad: int) -> None:
        if num_bad and not self._task.allow_nonfinite:
            raise nonfinite_input(pair, num_bad, self._reader.uris)

    def _check_overflow(self, pair: TensorPair, output: ShardOutput, count: int) -> None:
        if count > 0:
            raise overflow(pair, output, count)


def _count_nonfinite(values: torch.Tensor) -> int:
    return int(torch.count_nonzero(~torch.isfinite(values)))


def _computed_dtype(pair: TensorPair) -> str:
    # Codes are made from values that have not been rounded.
    return "F32" if pair.blocks else pair.output_dtype


def worth_compiling(task: ShardTask) -> frozenset[Dtypes]:
    """Return the mixtures of dtypes that enough of the shard is in: each costs a compilation."""
    if not task.may_compile or task.transforms or task.directions:
        return frozenset()
    num_bytes: Counter[Dtypes] = Counter()
    for pair in task.shard.tensors:
        if pair.initial is not None:
            names = (pair.initial.dtype, pair.aligned.dtype, _computed_dtype(pair))
            num_bytes[Dtypes(*(TORCH_DTYPES[name] for name in names))] += used_bytes(pair)
    least = MIN_COMPILED_SHARE * task.shard.input_bytes
    return frozenset(dtypes for dtypes, found in num_bytes.items() if found >= least)
