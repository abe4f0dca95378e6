"""From the sides of a chunk to its output values, one per alpha, and what was measured of them."""

from __future__ import annotations

import functools
import math
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import torch

from expo_ray.checkpoints.formats.header import FLOAT_DTYPES, TensorRef, tensor_bytes
from expo_ray.checkpoints.tensors import TORCH_DTYPES
from expo_ray.extrapolation.arithmetic.formula import BLOCK_ELEMENTS
from expo_ray.extrapolation.arithmetic.fused_kernel import (
    Dtypes,
    FusedKernel,
    Steps,
    fused_kernel,
)
from expo_ray.extrapolation.arithmetic.halves import CompiledHalves, Halves, PlainHalves
from expo_ray.extrapolation.arithmetic.statistics import (
    DeltaSums,
    OutputSums,
    count_nonfinite,
    measure_direction,
)
from expo_ray.extrapolation.arithmetic.transforms import Stage, Visit
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
Result = TypeVar("Result")
Kept = TypeVar("Kept")


class Spread(Protocol):
    """Applies a function to every chunk and yields the results in order, as `map` does."""

    def __call__(
        self, work: Callable[[Chunk], Result], chunks: Iterable[Chunk], /
    ) -> Iterable[Result]:
        """Return one result per chunk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Block:
    """A part of a chunk that fits the processor's cache."""

    position: int
    """Of its first element in the extrapolated part of the tensor."""
    sides: tuple[torch.Tensor, torch.Tensor, torch.Tensor]
    """(initial, aligned, base), each in the dtype of its file."""
    directions: list[torch.Tensor]
    targets: list[torch.Tensor]
    alphas: list[float]


class ChunkComputer:
    """Applies the formula; one workspace per thread and compute dtype."""

    def __init__(self, task: ShardTask, reader: ChunkReader) -> None:
        self._task = task
        self._reader = reader
        self._local = threading.local()
        self._directions = ChunkDirections(task, reader)
        self._compiled = worth_compiling(task)
        self._compiled_inputs = {dtypes[:2] for dtypes in self._compiled}
        self._stages: list[Stage] = []

    def prepare(self, index: int, spread: Spread) -> None:
        """Let the transforms look at a whole tensor, before its first chunk and alone.

        Args:
            index: Of the tensor in the shard.
            spread: Does the blocks.

        Raises:
            ShardError: An input is not finite.
        """
        pair = self._task.shard.tensors[index]
        self._stages = []
        if pair.initial is None or not self._task.transforms:
            return
        with _one_thread():
            for transform in self._task.transforms:
                stages = tuple(self._stages)
                over_blocks = functools.partial(self._over_deltas, index, stages, spread)
                self._stages.append(transform.prepare(pair, over_blocks))

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
        ways = self._halves(pair, sides, outputs)
        sums = DeltaSums()
        for start in range(0, aligned.numel(), BLOCK_ELEMENTS):
            part = slice(start, start + BLOCK_ELEMENTS)
            after = aligned[part]
            base = after if sides.base is aligned else sides.base[part]
            block = _Block(
                position=chunk.position + start,
                sides=(initial[part], after, base),
                directions=[values[part] for values in directions],
                targets=[output[part] for output in outputs],
                alphas=alphas,
            )
            # The last one does every block.
            found = (self._compute_block(pair, block, halves) for halves in ways)
            sums.add(next(measured for measured in found if measured is not None))
        return sums, outputs

    def _compute_block(self, pair: TensorPair, block: _Block, halves: Halves) -> DeltaSums | None:
        """Fill the targets of a block and return what was measured; None: not by these halves."""
        measured = halves.load(*block.sides)
        if measured is None:
            return None
        self._check_finite(pair, measured.num_nonfinite)
        measured.outputs = [OutputSums() for _ in block.targets]
        for index, values in enumerate(block.directions or [None]):
            if values is not None:
                halves.delta.copy_(values)
            for stage in self._stages:
                stage(halves.delta, block.position)
            if self._stages:
                measured.num_kept = int(np.count_nonzero(halves.delta.numpy()))
            moved = None if values is None else measure_direction(halves.delta)
            for number, output in enumerate(self._task.outputs):
                if output.direction != index:
                    continue
                target = block.targets[number]
                counted = halves.write(block.alphas[number], target)
                if counted is None:
                    return None
                if counted.num_nonfinite and not self._task.allow_overflow:
                    self._check_overflow(pair, output, halves.count_overflows(target))
                counted.direction = moved
                measured.outputs[number] = counted
        return measured

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
        if self._task.transforms:
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

    def _copy(self, pair: TensorPair, base: torch.Tensor, slot: Slot) -> Computed:
        sums = DeltaSums(outputs=[OutputSums() for _ in self._task.outputs])
        if pair.base.dtype not in FLOAT_DTYPES:
            return sums, [base.view(torch.uint8)] * len(self._task.outputs)
        sums.num_nonfinite = count_nonfinite(base)
        self._check_finite(pair, sums.num_nonfinite)
        outputs = self._targets(pair, base.numel(), slot)
        for index, target in enumerate(outputs):
            target.copy_(base)
            sums.outputs[index].num_nonfinite = num_lost = count_nonfinite(target)
            if not self._task.allow_overflow:
                overflows = num_lost - sums.num_nonfinite
                self._check_overflow(pair, self._task.outputs[index], overflows)
        return sums, outputs

    def _over_deltas(
        self, index: int, stages: Sequence[Stage], spread: Spread, visit: Visit[Result]
    ) -> list[Result]:
        """Pass over the delta of one tensor, as the stages before leave it."""
        pair = self._task.shard.tensors[index]
        initial = pair.initial
        if initial is None:
            return []

        kernel = self._delta_kernel(pair, initial, measures=False)

        def work(chunk: Chunk) -> Result:
            delta = self._delta(pair, initial, chunk, kernel)
            for stage in stages:
                stage(delta, chunk.position)
            return visit(chunk.position, delta)

        chunks = tensor_chunks(pair, index, BLOCK_ELEMENTS, 0)
        return list(spread(work, (c for c in chunks if c.initial_start is not None)))

    def _delta(
        self, pair: TensorPair, ref: TensorRef, chunk: Chunk, kernel: FusedKernel | None
    ) -> torch.Tensor:
        """Return the delta of a block, in a buffer of the thread."""
        slot = self._kept("slot", lambda: Slot(8 * BLOCK_ELEMENTS, 0))
        initial, aligned = self._reader.read_pair(pair, ref, chunk, slot)
        directions = self._directions_of(pair, chunk, (initial, aligned))
        if kernel is not None:
            buffer = self._kept("delta", lambda: torch.empty(BLOCK_ELEMENTS))
            delta = buffer[: aligned.numel()]
            if kernel.run(initial, aligned, [delta], [1.0], measures=False) is not None:
                return delta
        delta = self._plain(pair).subtract(initial, aligned)
        for values in directions:
            delta.copy_(values)
        if num_bad := count_nonfinite(delta):
            raise nonfinite_input(pair, num_bad, self._reader.uris)
        return delta

    def _targets(self, pair: TensorPair, n: int, slot: Slot) -> list[torch.Tensor]:
        dtype = _computed_dtype(pair)
        num_bytes = tensor_bytes(dtype, (n,))
        return [raw[:num_bytes].view(TORCH_DTYPES[dtype]) for raw in slot.outputs]

    def _halves(self, pair: TensorPair, sides: Sides, outputs: list[torch.Tensor]) -> list[Halves]:
        """Return what may do the blocks of a chunk, the swiftest first."""
        plain = self._plain(pair)
        first = pair.initial and self._delta_kernel(pair, pair.initial, measures=True)
        if not first:
            return [plain]
        second = None
        # Where nothing is written, nothing would show what is wrong with a base of its own.
        suits = sides.pair is not None and sides.base is sides.pair[1]
        if outputs:
            dtypes = Dtypes(torch.float32, sides.base.dtype, outputs[0].dtype)
            second = fused_kernel(dtypes, 1, measures=False, steps=Steps.OUTPUT)
            suits = second is not None
        if not suits:
            return [plain]
        return [self._kept((first, second), lambda: CompiledHalves(first, second)), plain]

    def _plain(self, pair: TensorPair) -> PlainHalves:
        dtype = torch.float64 if computes_float64(pair) else torch.float32
        return self._kept(dtype, lambda: PlainHalves(dtype))

    def _kept(self, key: object, make: Callable[[], Kept]) -> Kept:
        """Return what a thread keeps from block to block."""
        kept: dict[object, Kept] = self._local.__dict__.setdefault("kept", {})
        if key not in kept:
            kept[key] = make()
        return kept[key]

    def _delta_kernel(
        self, pair: TensorPair, initial: TensorRef, *, measures: bool
    ) -> FusedKernel | None:
        ends = TORCH_DTYPES[initial.dtype], TORCH_DTYPES[pair.aligned.dtype]
        # A base in float64 makes all of the arithmetic so.
        if ends not in self._compiled_inputs or computes_float64(pair):
            return None
        return fused_kernel(Dtypes(*ends, torch.float32), 1, measures=measures, steps=Steps.DELTA)

    def _check_finite(self, pair: TensorPair, num_bad: int) -> None:
        if num_bad and not self._task.allow_nonfinite:
            raise nonfinite_input(pair, num_bad, self._reader.uris)

    def _check_overflow(self, pair: TensorPair, output: ShardOutput, count: int) -> None:
        if count > 0:
            raise overflow(pair, output, count)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Have torch sum with one thread, whose number may change bits."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(num_threads)


def _computed_dtype(pair: TensorPair) -> str:
    # Codes are made from values that have not been rounded.
    return "F32" if pair.blocks else pair.output_dtype


def worth_compiling(task: ShardTask) -> frozenset[Dtypes]:
    """Return the mixtures of dtypes that enough of the shard is in: each costs a compilation."""
    if not task.may_compile or task.directions:
        return frozenset()
    num_bytes: Counter[Dtypes] = Counter()
    for pair in task.shard.tensors:
        if pair.initial is not None:
            names = (pair.initial.dtype, pair.aligned.dtype, _computed_dtype(pair))
            num_bytes[Dtypes(*(TORCH_DTYPES[name] for name in names))] += used_bytes(pair)
    least = MIN_COMPILED_SHARE * task.shard.input_bytes
    return frozenset(dtypes for dtypes, found in num_bytes.items() if found >= least)
