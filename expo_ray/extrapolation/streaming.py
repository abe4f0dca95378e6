"""Whole tensors of an extrapolated model, one after the other, without writing a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import torch

from expo_ray.checkpoints.tensors import TORCH_DTYPES
from expo_ray.errors import CheckpointError
from expo_ray.extrapolation.alpha import parse_alphas
from expo_ray.extrapolation.alpha_rules import AlphaRules, resolve
from expo_ray.extrapolation.chunk_worker import ChunkWorker
from expo_ray.extrapolation.chunks import Slot, split_chunks
from expo_ray.extrapolation.input_files import InputFiles
from expo_ray.extrapolation.plan import OutputShard, Plan, build_plan
from expo_ray.extrapolation.shard_files import ShardFile
from expo_ray.extrapolation.tasks import WRITE, ShardOutput, shard_task

CHUNK_BYTES = 4 * 1024 * 1024


def stream_weights(
    initial: str | Path,
    aligned: str | Path,
    alpha: float | None = None,
    *,
    alpha_rules: str | Path | AlphaRules | None = None,
    transforms: Sequence[str] = (),
    output_dtype: str = "auto",
    vocab_policy: str = "refuse",
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
        transforms=transforms,
    )
    if plan.is_requantized:
        raise CheckpointError(
            "FP8 codes with block scales are written, not streamed",
            where=plan.pair.aligned.uri,
            hint="give an output dtype, bfloat16 for example: the blocks are then read as plain "
            "weights",
        )
    shard = OutputShard(name="stream", tensors=plan.pair.tensors)
    output = _output(plan, alpha, alpha_rules)
    task = shard_task(
        plan,
        shard,
        WRITE,
        (output,),
        allow_nonfinite=allow_nonfinite,
        allow_overflow=allow_overflow,
    )
    sink = _TensorSink(output, shard.name, b"")
    slot = Slot(CHUNK_BYTES, 1)
    inputs = InputFiles(task)
    worker = ChunkWorker(task, inputs, [sink])
    chunks = groupby(split_chunks(task, CHUNK_BYTES), key=lambda chunk: chunk.index)
    pending = next(chunks, None)
    try:
        for index, pair in enumerate(shard.tensors):
            dtype = TORCH_DTYPES[pair.output_dtype]
            sink.target = torch.empty(pair.aligned.shape, dtype=dtype)
            sink.position = 0
            # A tensor without elements has no chunks.
            if pending is not None and pending[0] == index:
                worker.prepare(index)
                for chunk in pending[1]:
                    worker.run(chunk, slot)
                pending = next(chunks, None)
            yield pair.name, sink.target
        inputs.check_unchanged()
    finally:
        inputs.close()


def _output(
    plan: Plan, alpha: float | None, alpha_rules: str | Path | AlphaRules | None
) -> ShardOutput:
    if alpha_rules is None:
        (only,) = parse_alphas(() if alpha is None else alpha)
        return ShardOutput(alpha=only, folder="", plan_digest="")
    resolution = resolve(alpha_rules, plan.pair.tensors, default=alpha)
    return ShardOutput(alpha=None, folder="", plan_digest="", tensor_alphas=resolution.alphas)


class _TensorSink(ShardFile):
    """Takes the bytes of one tensor after the other into memory."""

    target: torch.Tensor
    position: int

    def put(self, offset_bytes: int, computed: torch.Tensor, name: str) -> memoryview:
        raw = computed.view(torch.uint8)
        flat = self.target.reshape(-1).view(torch.uint8)
        flat[self.position : self.position + raw.numel()].copy_(raw)
        self.position += raw.numel()
        return memoryview(b"")
