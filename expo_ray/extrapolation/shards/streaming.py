"""The tensors of an extrapolated model without a written checkpoint: in order, or into a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Self

import torch

from expo_ray.checkpoints import ContentDigest, WeightsDigest
from expo_ray.checkpoints.tensors import TORCH_DTYPES
from expo_ray.cores import num_cores
from expo_ray.errors import CheckpointError
from expo_ray.extrapolation.arithmetic.directions import Direction
from expo_ray.extrapolation.planning.alpha import parse_alphas
from expo_ray.extrapolation.planning.alpha_rules import AlphaRules, resolve
from expo_ray.extrapolation.planning.plan import OutputShard, Plan, build_plan
from expo_ray.extrapolation.shards.chunk_worker import ChunkWorker
from expo_ray.extrapolation.shards.chunks import Chunk, Slot, split_chunks
from expo_ray.extrapolation.shards.input_files import InputFiles
from expo_ray.extrapolation.shards.shard_files import ShardFile
from expo_ray.extrapolation.shards.tasks import WRITE, ShardOutput, ShardTask, shard_task

CHUNK_BYTES = 4 * 1024 * 1024
_MAX_THREADS = 4

Put = Callable[[torch.Tensor], None]
"""Takes the next values of a tensor; they are overwritten afterwards."""
PlaceOf = Callable[[str, torch.Size], torch.Tensor]
"""Gives the flat tensor that takes the values of (name, shape), in any dtype, on any device."""


def stream_weights(
    initial: str | Path,
    aligned: str | Path,
    alpha: float | None = None,
    *,
    alpha_rules: str | Path | AlphaRules | None = None,
    transforms: Sequence[str] = (),
    output_dtype: str = "auto",
    vocab_policy: str = "refuse",
    extra_tensors: Sequence[str] = (),
    allow_nonfinite: bool = False,
    allow_overflow: bool = False,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of the extrapolated model, with the bits of the written checkpoint.

    Args:
        initial: Folder of the model before alignment.
        aligned: Folder of the model after it.
        alpha: The alpha; 0 gives the formula's result, not a copy of aligned. Under rules it
            is for tensors without a rule.
        alpha_rules: As for `extrapolate`.
        transforms: As for `extrapolate`.
        output_dtype: As for `extrapolate`.
        vocab_policy: As for `extrapolate`.
        extra_tensors: As for `extrapolate`.
        allow_nonfinite: As for `extrapolate`.
        allow_overflow: As for `extrapolate`.

    Yields:
        (name, tensor), sorted by name; each tensor owns its memory.

    Raises:
        RequestError: The pair does not fit, or FP8 blocks would have to be made.
        ShardError: Non-finite values or overflow.
    """
    plan = build_plan(
        initial,
        aligned,
        output_dtype=output_dtype,
        vocab_policy=vocab_policy,
        extra_tensors=extra_tensors,
        transforms=transforms,
    )
    yield from stream_plan(
        plan,
        alpha,
        alpha_rules=alpha_rules,
        allow_nonfinite=allow_nonfinite,
        allow_overflow=allow_overflow,
    )


def stream_plan(
    plan: Plan,
    alpha: float | None = None,
    *,
    alpha_rules: str | Path | AlphaRules | None = None,
    directions: Sequence[Direction] = (),
    **allowed: bool,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of a plan, with the bits of the written checkpoint.

    Args:
        plan: Of a pair, or of a trajectory.
        alpha: As for `stream_weights`.
        alpha_rules: As for `stream_weights`.
        directions: What takes the place of delta along a trajectory; none for a pair.
        allowed: `allow_nonfinite` and `allow_overflow`.

    Yields:
        As `stream_weights`.

    Raises:
        CheckpointError: FP8 blocks would have to be made.
        ShardError: As for `stream_weights`.
    """
    task = _task(plan, alpha, alpha_rules, directions=directions, **allowed)
    with _Computation(task) as computation:
        for index, pair in enumerate(task.shard.tensors):
            tensor = torch.empty(pair.aligned.shape, dtype=TORCH_DTYPES[pair.output_dtype])
            computation.run(index, _filling(tensor.view(-1)))
            yield pair.name, tensor


def fill_plan(
    plan: Plan,
    alpha: float | None,
    *,
    alpha_rules: str | Path | AlphaRules | None = None,
    directions: Sequence[Direction] = (),
    place_of: PlaceOf,
    digest: WeightsDigest,
) -> None:
    """Put the weights that `stream_plan` yields into tensors that are there already.

    Tensors are computed side by side, in pieces that are digested and put in place while they are
    in the processor's cache.

    Args:
        plan: As for `stream_plan`.
        alpha: As for `stream_plan`.
        alpha_rules: As for `stream_plan`.
        directions: As for `stream_plan`.
        place_of: Called once for each tensor, from several threads.
        digest: Takes every tensor, before it is converted to the dtype of its place.

    Raises:
        CheckpointError: FP8 blocks would have to be made.
        ShardError: Non-finite values or overflow.
    """
    task = _task(plan, alpha, alpha_rules, directions=directions)
    tensors = task.shard.tensors
    # The largest first: the threads then end at about the same time.
    order = sorted(range(len(tensors)), key=lambda i: tensors[i].output_bytes, reverse=True)
    num_threads = min(num_cores(), _MAX_THREADS)
    with _Computation(task, num_threads) as computation, ThreadPoolExecutor(num_threads) as pool:

        def fill(index: int) -> None:
            pair, content = tensors[index], ContentDigest()
            into_place = _filling(place_of(pair.name, torch.Size(pair.aligned.shape)))

            def put(values: torch.Tensor) -> None:
                content.update(values.view(torch.uint8).numpy().data)
                into_place(values)

            computation.run(index, put)
            digest.add_digest(pair.name, content.written(), pair.output_dtype, pair.aligned.shape)

        for _ in pool.map(fill, order):
            pass


def _filling(flat: torch.Tensor) -> Put:
    position = 0

    def put(values: torch.Tensor) -> None:
        nonlocal position
        flat[position : position + values.numel()].copy_(values)
        position += values.numel()

    return put


class _Computation:
    """Computes whole tensors, one in each thread that asks; up to `num_threads` at a time."""

    def __init__(self, task: ShardTask, num_threads: int = 1) -> None:
        self._task = task
        self._inputs = InputFiles(task)
        self._chunks: dict[int, list[Chunk]] = {
            index: list(chunks)
            for index, chunks in groupby(split_chunks(task, CHUNK_BYTES), key=lambda c: c.index)
        }
        self._lanes: SimpleQueue[_Lane] = SimpleQueue()
        for _ in range(num_threads):
            self._lanes.put(_Lane(task, self._inputs))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        try:
            if kind is None:
                self._inputs.check_unchanged()
        finally:
            self._inputs.close()

    def run(self, index: int, put: Put) -> None:
        """Compute one tensor of the shard and hand out its values in order."""
        lane = self._lanes.get()
        try:
            lane.sink.target = put, TORCH_DTYPES[self._task.shard.tensors[index].output_dtype]
            lane.worker.prepare(index)
            # A tensor without elements has no chunks.
            for chunk in self._chunks.get(index, ()):
                lane.worker.run(chunk, lane.slot)
        finally:
            self._lanes.put(lane)


class _Lane:
    """What one thread needs to compute."""

    def __init__(self, task: ShardTask, inputs: InputFiles) -> None:
        self.sink = _Sink(task.outputs[0], task.shard.name, b"")
        self.worker = ChunkWorker(task, inputs, [self.sink])
        self.slot = Slot(CHUNK_BYTES, 1)


class _Sink(ShardFile):
    """Passes the values of one tensor on instead of writing them."""

    target: tuple[Put, torch.dtype]

    def put(self, offset_bytes: int, computed: torch.Tensor, name: str) -> memoryview:
        put, dtype = self.target
        put(computed.view(dtype))
        return memoryview(b"")


def _task(
    plan: Plan, alpha: float | None, alpha_rules: str | Path | AlphaRules | None, **how: Any
) -> ShardTask:
    if plan.is_requantized:
        raise CheckpointError(
            "FP8 codes with block scales are written, not streamed",
            where=plan.pair.aligned.uri,
            hint="give an output dtype, bfloat16 for example: the blocks are then read as plain "
            "weights",
        )
    shard = OutputShard(name="stream", tensors=plan.pair.tensors)
    output = _output(plan, alpha, alpha_rules)
    return shard_task(plan, shard, WRITE, (output,), needs_statistics=False, **how)


def _output(
    plan: Plan, alpha: float | None, alpha_rules: str | Path | AlphaRules | None
) -> ShardOutput:
    if alpha_rules is None:
        (only,) = parse_alphas(() if alpha is None else alpha)
        return ShardOutput(alpha=only, folder="", plan_digest="")
    resolution = resolve(alpha_rules, plan.pair.tensors, default=alpha)
    return ShardOutput(alpha=None, folder="", plan_digest="", tensor_alphas=resolution.alphas)
