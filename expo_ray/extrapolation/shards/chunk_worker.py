"""One chunk of one tensor: read both sides, compute every alpha, write. Runs in several threads."""

from __future__ import annotations

import functools
import threading
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from expo_ray.checkpoints.formats.fp8_format import BlockFormat
from expo_ray.checkpoints.formats.header import DTYPE_BITS, FLOAT_DTYPES, TensorRef, tensor_bytes
from expo_ray.checkpoints.tensors import TORCH_DTYPES
from expo_ray.errors import ShardError
from expo_ray.extrapolation.arithmetic.formula import BLOCK_ELEMENTS, Block, Workspace
from expo_ray.extrapolation.arithmetic.fused_kernel import Bits, fused_kernel
from expo_ray.extrapolation.arithmetic.requantization import requantize
from expo_ray.extrapolation.arithmetic.statistics import (
    DeltaSums,
    OutputSums,
    count_overflows,
    measure_inputs,
    measure_output,
)
from expo_ray.extrapolation.arithmetic.transforms import Stage
from expo_ray.extrapolation.pairing.tensor_pair import TensorPair
from expo_ray.extrapolation.planning.alpha import format_alpha, round_alpha
from expo_ray.extrapolation.planning.plan import computes_float64
from expo_ray.extrapolation.shards.chunks import Chunk, Slot, tensor_chunks
from expo_ray.extrapolation.shards.input_files import InputFiles
from expo_ray.extrapolation.shards.shard_files import ShardFile
from expo_ray.extrapolation.shards.tasks import ShardTask


class ChunkWorker:
    """Reads, computes and writes chunks; one workspace per thread and compute dtype."""

    def __init__(self, task: ShardTask, inputs: InputFiles, files: list[ShardFile]) -> None:
        self._task = task
        self._inputs = inputs
        self._files = files
        self._local = threading.local()
        self._kernel = None
        if task.may_compile and not task.transforms:
            self._kernel = fused_kernel(len(task.outputs), measures=task.needs_statistics)
        self._stages: list[Stage] = []
        self._lock = threading.Lock()
        # Of tensors that are not whole yet, per output.
        self._scales: dict[int, list[torch.Tensor]] = {}

    def run(self, chunk: Chunk, slot: Slot) -> tuple[DeltaSums, list[memoryview]]:
        """Work on one chunk and return its sums and the bytes to hash, one per output."""
        pair = self._task.shard.tensors[chunk.index]
        name = pair.name
        if chunk.is_scales and pair.blocks is not None:
            name = pair.blocks.scale_name(name)
            sums, outputs = DeltaSums(), [s.view(-1) for s in self._scales.pop(chunk.index)]
        else:
            sums, outputs = self._compute(pair, chunk, slot)
        views = [
            file.put(chunk.offset_bytes, output, name)
            for file, output in zip(self._files, outputs, strict=True)
        ]
        return sums, views

    def _compute(
        self, pair: TensorPair, chunk: Chunk, slot: Slot
    ) -> tuple[DeltaSums, list[torch.Tensor]]:
        onto = None
        if pair.onto is not None:
            onto = self._read("onto", pair.onto, chunk, slot.onto)
        if chunk.initial_start is None or pair.initial is None:
            if onto is None:
                onto = self._read("aligned", pair.aligned, chunk, slot.aligned)
            return self._copy(pair, onto, slot)
        aligned = self._read("aligned", pair.aligned, chunk, slot.aligned)
        initial = self._read("initial", pair.initial, chunk, slot.initial)
        sums, outputs = self._extrapolate(pair, chunk.position, initial, aligned, onto, slot)
        if pair.blocks is not None:
            self._requantize(pair, pair.blocks, chunk, aligned, outputs, sums)
        return sums, outputs

    def _requantize(
        self,
        pair: TensorPair,
        block_format: BlockFormat,
        chunk: Chunk,
        aligned: torch.Tensor,
        outputs: list[torch.Tensor],
        sums: DeltaSums,
    ) -> None:
        """Replace values by codes and keep their scales for the end of the tensor."""
        num_columns = pair.aligned.shape[1]
        first = chunk.start // num_columns // block_format.block_rows
        with self._lock:
            if chunk.index not in self._scales:
                shape = block_format.scales_of(pair.aligned.shape)
                dtype = TORCH_DTYPES[block_format.scale_dtype]
                self._scales[chunk.index] = [torch.empty(shape, dtype=dtype) for _ in outputs]
            scales = self._scales[chunk.index]
        for index, values in enumerate(outputs):
            try:
                outputs[index], sums.outputs[index] = requantize(
                    values.view(-1, num_columns),
                    aligned.view(-1, num_columns),
                    scales[index][first:],
                    block_format,
                )
            except OverflowError as error:
                raise self._overflow(pair, index, 1) from error

    def prepare(self, index: int) -> None:
        """Let the transforms look at a whole tensor, before its first chunk and alone.

        Args:
            index: Of the tensor in the shard.
        """
        pair = self._task.shard.tensors[index]
        self._stages = []
        if pair.initial is None:
            return
        for transform in self._task.transforms:
            blocks = functools.partial(self._deltas, index, tuple(self._stages))
            self._stages.append(transform.prepare(pair, blocks))

    def _deltas(self, index: int, stages: Sequence[Stage]) -> Iterator[tuple[int, torch.Tensor]]:
        """Pass over the delta of one tensor, as the stages before leave it."""
        pair = self._task.shard.tensors[index]
        if pair.initial is None:
            return
        workspace = self._workspace(torch.float64 if computes_float64(pair) else torch.float32)
        slot = Slot(8 * BLOCK_ELEMENTS, 0)
        for chunk in tensor_chunks(pair, index, BLOCK_ELEMENTS, 0):
            if chunk.initial_start is None:
                continue
            aligned = self._read("aligned", pair.aligned, chunk, slot.aligned)
            initial = self._read("initial", pair.initial, chunk, slot.initial)
            delta = workspace.load(initial, aligned).delta
            num_bad = int(torch.count_nonzero(~torch.isfinite(delta)))
            if num_bad:
                raise self._nonfinite(pair, num_bad)
            for stage in stages:
                stage(delta, chunk.position)
            yield chunk.position, delta

    def _read(self, side: str, ref: TensorRef, chunk: Chunk, buffer: torch.Tensor) -> torch.Tensor:
        item_bytes = DTYPE_BITS[ref.dtype] // 8
        raw = buffer[: chunk.num_elements * item_bytes]
        start = chunk.initial_start or 0 if side == "initial" else chunk.start
        self._inputs.read(side, ref, start * item_bytes, raw)
        return raw.view(TORCH_DTYPES[ref.dtype])

    def _extrapolate(
        self,
        pair: TensorPair,
        position: int,
        initial: torch.Tensor,
        aligned: torch.Tensor,
        onto: torch.Tensor | None,
        slot: Slot,
    ) -> tuple[DeltaSums, list[torch.Tensor]]:
        dtype = torch.float64 if computes_float64(pair) else torch.float32
        workspace = self._workspace(dtype)
        outputs = self._targets(pair, aligned.numel(), slot)
        alphas = [output.alpha_of(pair.name) for output in self._task.outputs]
        if dtype == torch.float32:
            alphas = [round_alpha(alpha) for alpha in alphas]
        if self._kernel and onto is None and _is_bfloat16(initial, aligned, *outputs):
            first, second, *results = map(_bits, (initial, aligned, *outputs))
            measures = self._task.needs_statistics
            measured = self._kernel.run(first, second, results, alphas, measures=measures)
            if measured is not None:
                return measured, outputs
        sums = DeltaSums()
        for start in range(0, aligned.numel(), BLOCK_ELEMENTS):
            part = slice(start, start + BLOCK_ELEMENTS)
            base = aligned[part] if onto is None else onto[part]
            block = workspace.load(initial[part], aligned[part], None if onto is None else base)
            targets = [output[part] for output in outputs]
            measured = measure_inputs(block, initial[part], aligned[part])
            if onto is not None:
                measured.num_nonfinite += int(torch.count_nonzero(~torch.isfinite(base)))
            if measured.num_nonfinite and not self._task.allow_nonfinite:
                raise self._nonfinite(pair, measured.num_nonfinite)
            self._transform(block, position + start, measured)
            self._write(pair, block, base, targets, alphas, measured)
            sums.add(measured)
        return sums, outputs

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
        targets: list[torch.Tensor],
        alphas: list[float],
        measured: DeltaSums,
    ) -> None:
        for index, target in enumerate(targets):
            block.write(alphas[index], target)
            counted = measure_output(target, base)
            if counted.num_nonfinite and not self._task.allow_overflow:
                overflows = count_overflows(block, target)
                if overflows:
                    raise self._overflow(pair, index, overflows)
            measured.outputs.append(counted)

    def _copy(
        self, pair: TensorPair, base: torch.Tensor, slot: Slot
    ) -> tuple[DeltaSums, list[torch.Tensor]]:
        sums = DeltaSums(outputs=[OutputSums() for _ in self._files])
        if pair.base.dtype not in FLOAT_DTYPES:
            return sums, [base.view(torch.uint8)] * len(self._files)
        num_bad = int(torch.count_nonzero(~torch.isfinite(base)))
        sums.num_nonfinite = num_bad
        if num_bad and not self._task.allow_nonfinite:
            raise self._nonfinite(pair, num_bad)
        outputs = self._targets(pair, base.numel(), slot)
        for index, target in enumerate(outputs):
            target.copy_(base)
            num_lost = int(torch.count_nonzero(~torch.isfinite(target)))
            sums.outputs[index].num_nonfinite = num_lost
            if num_lost > num_bad and not self._task.allow_overflow:
                raise self._overflow(pair, index, num_lost - num_bad)
        return sums, outputs

    def _targets(self, pair: TensorPair, n: int, slot: Slot) -> list[torch.Tensor]:
        # Codes are made from values that have not been rounded.
        dtype = "F32" if pair.blocks else pair.output_dtype
        num_bytes = tensor_bytes(dtype, (n,))
        return [raw[:num_bytes].view(TORCH_DTYPES[dtype]) for raw in slot.outputs]

    def _workspace(self, dtype: torch.dtype) -> Workspace:
        spaces: dict[torch.dtype, Workspace] = self._local.__dict__.setdefault("spaces", {})
        if dtype not in spaces:
            spaces[dtype] = Workspace(dtype)
        return spaces[dtype]

    def _nonfinite(self, pair: TensorPair, count: int) -> ShardError:
        return ShardError(
            "an input holds values that are not finite",
            where=f"tensor {pair.name!r} of {' or '.join(self._inputs.uris)}",
            got=f"{count} or more NaN or infinite elements",
            expected="finite values",
            hint="--allow-nonfinite goes on all the same",
        )

    def _overflow(self, pair: TensorPair, index: int, count: int) -> ShardError:
        is_copied = not pair.num_extrapolated
        alpha = "" if is_copied else format_alpha(self._task.outputs[index].alpha_of(pair.name))
        return ShardError(
            "the result does not fit the output dtype",
            where=f"tensor {pair.name!r}, {f'alpha {alpha}' if alpha else 'copied'}",
            got=f"{count} or more elements become infinite in {pair.output_dtype}",
            expected="finite values",
            hint="choose a smaller alpha or a wider --output-dtype; --allow-overflow goes on",
        )


def _is_bfloat16(*tensors: torch.Tensor) -> bool:
    return all(tensor.dtype == torch.bfloat16 for tensor in tensors)


def _bits(values: torch.Tensor) -> Bits:
    bits: Bits = values.view(torch.int16).numpy().view(np.uint16)
    return bits
