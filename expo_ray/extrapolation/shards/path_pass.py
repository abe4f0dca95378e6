"""One read of all checkpoints of a trajectory: the Gram matrix of the changes of every tensor.

A run of elements is read of every checkpoint, side by side, and measured while the next one is
read. What leaves is N x N numbers for each tensor; memory does not grow with N or with tensors.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch

from expo_ray.checkpoints.formats.header import DTYPE_BITS
from expo_ray.checkpoints.tensors import TORCH_DTYPES
from expo_ray.errors import ShardError
from expo_ray.extrapolation.arithmetic.path_sums import (
    NonFiniteCheckpoint,
    PathSums,
    measure_path,
)
from expo_ray.extrapolation.pairing.tensor_pair import TensorPair
from expo_ray.extrapolation.shards.input_files import InputFiles
from expo_ray.extrapolation.shards.tasks import MIN_CHUNK_BYTES, ShardReport, ShardTask

# Beside them, a thread that measures takes some 16 MiB for blocks in wider dtypes.
_BUFFER_BYTES = 96 * 1024 * 1024
_NUM_COMPUTING = 2
_NUM_SLOTS = 3


@dataclass(frozen=True, slots=True)
class _Run:
    """Consecutive elements of one tensor, in all checkpoints."""

    pair: TensorPair
    start: int
    num_elements: int


def measure_paths(task: ShardTask, on_bytes: Callable[[int], None] | None = None) -> ShardReport:
    """Measure how the tensors of a task move through the checkpoints.

    Args:
        task: Of a trajectory; tensors that are copied are left out.
        on_bytes: Called from this thread with numbers of input bytes that are done.

    Returns:
        By tensor, in the statistics, what `PathSums.packed` makes small.

    Raises:
        ShardError: A checkpoint is not finite, or changed since the work was planned.
        CheckpointError: An input is missing.
    """
    started = time.monotonic()
    threads_before = torch.get_num_threads()
    inputs = InputFiles(task)
    try:
        sums = _measure(task, inputs, on_bytes or (lambda _: None))
        inputs.check_unchanged()
    finally:
        inputs.close()
        torch.set_num_threads(threads_before)
    return ShardReport(
        shard_name=task.shard.name,
        bytes_read=inputs.bytes_read,
        bytes_written=0,
        seconds=time.monotonic() - started,
        statistics={name: total.packed() for name, total in sums.items()},
    )


def _measure(
    task: ShardTask, inputs: InputFiles, on_bytes: Callable[[int], None]
) -> dict[str, PathSums]:
    sides = ("initial", *task.between, "aligned")
    paths = [pair for pair in task.shard.tensors if pair.path]
    sums = {pair.name: PathSums(len(sides)) for pair in paths}
    budget = _BUFFER_BYTES // (_NUM_SLOTS * len(sides))
    # After a failure for want of memory the task comes with smaller chunks.
    chunk_bytes = max(MIN_CHUNK_BYTES, min(task.chunk_bytes, budget) // 4096 * 4096)
    slots = [torch.empty(len(sides), chunk_bytes, dtype=torch.uint8) for _ in range(_NUM_SLOTS)]
    running: deque[tuple[_Run, torch.Tensor, Future[PathSums]]] = deque()

    def free_slot() -> None:
        run, slot, measured = running.popleft()
        sums[run.pair.name].add(measured.result())
        on_bytes(sum(ref.input_bytes(run.num_elements) for ref in run.pair.path))
        slots.append(slot)

    with _pool(_NUM_COMPUTING) as computing, _pool(task.num_threads) as reading:
        for run in _runs(paths, chunk_bytes):
            if not slots:
                free_slot()
            slot = slots.pop()
            widths = [DTYPE_BITS[ref.dtype] // 8 for ref in run.pair.path]
            rows = [row[: run.num_elements * n] for row, n in zip(slot, widths, strict=True)]
            reads = [
                reading.submit(inputs.read, side, ref, run.start * n, row)
                for side, ref, n, row in zip(sides, run.pair.path, widths, rows, strict=True)
            ]
            measured = computing.submit(_measured, task, run, reads, rows)
            running.append((run, slot, measured))
        while running:
            free_slot()
    return sums


def _runs(paths: list[TensorPair], chunk_bytes: int) -> Iterator[_Run]:
    for pair in paths:
        step = chunk_bytes // max(DTYPE_BITS[ref.dtype] // 8 for ref in pair.path)
        for start in range(0, pair.aligned.num_elements, step):
            yield _Run(pair, start, min(step, pair.aligned.num_elements - start))


def _measured(
    task: ShardTask, run: _Run, reads: list[Future[None]], rows: list[torch.Tensor]
) -> PathSums:
    for read in reads:
        read.result()
    dtypes = [TORCH_DTYPES[ref.dtype] for ref in run.pair.path]
    values = [row.view(dtype) for row, dtype in zip(rows, dtypes, strict=True)]
    if len(set(dtypes)) > 1:  # an adapter is float32, and its base may be what it started from
        widest = functools.reduce(torch.promote_types, dtypes)
        values = [side.to(widest) for side in values]
    try:
        return measure_path(values)
    except NonFiniteCheckpoint as found:
        labels = (task.end_labels[0], *task.between, task.end_labels[1])
        raise ShardError(
            "a checkpoint of the trajectory holds values that are not finite",
            where=f"{labels[found.index]} ({task.uris[found.index]}), tensor {run.pair.name!r}",
            got=f"{found.count} or more NaN or infinite elements",
            expected="finite values",
            hint="leave the checkpoint out of the trajectory; was the training still sound there?",
        ) from found


@contextlib.contextmanager
def _pool(num_threads: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
