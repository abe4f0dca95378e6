"""The shard engine: one output shard, all alphas, one read of the inputs, small memory.

Chunks of a tensor are read, computed and written by a few threads, each with preallocated
buffers; other threads hash the bytes in file order. The output bytes depend on neither the chunk
size nor the number of threads. A callable without Ray.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from expo_ray.checkpoints.storages.remote_path import is_remote
from expo_ray.extrapolation.arithmetic.requantization_costs import block_row_bytes
from expo_ray.extrapolation.arithmetic.statistics import (
    DeltaSums,
    OutputSums,
)
from expo_ray.extrapolation.pairing.tensor_pair import TensorPair
from expo_ray.extrapolation.shards.chunk_compute import Result, Spread
from expo_ray.extrapolation.shards.chunk_worker import ChunkWorker
from expo_ray.extrapolation.shards.chunks import Chunk, Slot, split_chunks, widths_of
from expo_ray.extrapolation.shards.input_files import InputFiles
from expo_ray.extrapolation.shards.remote_shard import RemoteShardWriter
from expo_ray.extrapolation.shards.shard_files import ShardComparer, ShardFile, ShardWriter
from expo_ray.extrapolation.shards.tasks import (
    BUFFER_BUDGET_BYTES,
    COMPARE,
    MEASURE,
    MIN_CHUNK_BYTES,
    PATH_BUFFER_BYTES,
    ShardOutput,
    ShardReport,
    ShardTask,
)

# Chunks that wait for their digests while others are computed.
SPARE_SLOTS = 4
MAX_LANES = 8

_Computed = Future[tuple[DeltaSums, list[memoryview]]]


def run_shard(task: ShardTask, on_bytes: Callable[[int], None] | None = None) -> ShardReport:
    """Do the work of one task.

    Args:
        task: What to read, compute and write or compare.
        on_bytes: Called from this thread with numbers of input bytes that are done.

    Returns:
        Receipts and statistics.

    Raises:
        ShardError: Non-finite values, overflow, an input that changed, a disk that is full.
        CheckpointError: An input is missing.
    """
    started = time.monotonic()
    threads_before = torch.get_num_threads()
    files: list[ShardFile] = []
    inputs = InputFiles(task)
    try:
        header = task.shard.header
        for output in task.outputs:
            files.append(_open_file(task, output, header))
        sums = _process(task, inputs, files, on_bytes or (lambda _: None))
        inputs.check_unchanged()
        receipts = tuple(file.finish(_facts(task, sums, index)) for index, file in enumerate(files))
    finally:
        for file in files:
            file.discard()
        inputs.close()
        torch.set_num_threads(threads_before)
    measured = {p.name: s.as_dict() for p, s in zip(task.shard.tensors, sums, strict=True)}
    return ShardReport(
        shard_name=task.shard.name,
        bytes_read=inputs.bytes_read,
        bytes_written=sum(r.num_bytes for r in receipts) if task.mode != COMPARE else 0,
        seconds=time.monotonic() - started,
        receipts=receipts,
        statistics=measured if task.mode == MEASURE else {},
    )


def _open_file(task: ShardTask, output: ShardOutput, header: bytes) -> ShardFile:
    name = task.shard.name
    if task.mode == COMPARE:
        return ShardComparer(output, name, header)
    if not is_remote(output.folder):
        return ShardWriter(output, name, header)
    num_bytes, num_open = task.shard.file_bytes, len(task.outputs)
    return RemoteShardWriter(output, name, header, num_bytes=num_bytes, num_open=num_open)


def _process(
    task: ShardTask,
    inputs: InputFiles,
    files: list[ShardFile],
    on_bytes: Callable[[int], None],
) -> list[DeltaSums]:
    """Pass all chunks through the threads; the files follow their bytes in order."""
    worker = ChunkWorker(task, inputs, files)
    names = [[name for name, _, _ in pair.outputs] for pair in task.shard.tensors]
    for file in files:
        file.begin([name for pair_names in names for name in pair_names])
    sums = [DeltaSums(outputs=[OutputSums() for _ in files]) for _ in names]
    chunk_bytes, num_slots = _buffers(task)
    slots = [
        Slot(chunk_bytes, len(files), has_onto=task.onto_uri is not None) for _ in range(num_slots)
    ]
    # Chunks in the order of the file, each with its slot and with what computes and hashes it.
    running: deque[tuple[Chunk, Slot, _Computed, list[Future[None]]]] = deque()
    with contextlib.ExitStack() as stack:
        # Lanes end last: they wait for what the workers compute.
        lanes = [stack.enter_context(_pool(1)) for _ in range(min(len(files), MAX_LANES))]
        workers = stack.enter_context(_pool(task.num_threads))

        def free_slot() -> None:
            chunk, slot, computed, jobs = running.popleft()
            chunk_sums, _ = computed.result()
            for job in jobs:
                job.result()
            sums[chunk.index].add(chunk_sums)
            on_bytes(_input_bytes(task.shard.tensors[chunk.index], chunk))
            slots.append(slot)

        prepared = -1
        for chunk in split_chunks(task, chunk_bytes):
            is_next = bool(task.transforms) and chunk.index != prepared
            if is_next or chunk.is_scales:
                # What transforms hold of the tensor before is let go first; scales are complete
                # when the codes are.
                while running:
                    free_slot()
            if is_next:
                worker.prepare(chunk.index, _spread_over(workers, 4 * task.num_threads))
                prepared = chunk.index
            if not slots:
                free_slot()
            slot = slots.pop()
            computed = workers.submit(worker.run, chunk, slot)
            name = names[chunk.index][int(chunk.is_scales)]
            running.append((chunk, slot, computed, _follow(lanes, files, name, computed)))
        while running:
            free_slot()
    return sums


def _buffers(task: ShardTask) -> tuple[int, int]:
    """Return the bytes of a buffer and the number of slots, inside the budget of a task."""
    num_slots = task.num_threads + SPARE_SLOTS
    # Comparing needs the bytes found beside the bytes computed.
    buffers_per_slot = 2 + len(task.outputs) * (2 if task.mode == COMPARE else 1)
    buffers_per_slot += task.onto_uri is not None
    budget_bytes = BUFFER_BUDGET_BYTES if not task.directions else PATH_BUFFER_BYTES
    per_thread = _sum_buffers(task)
    budget = budget_bytes // (num_slots * buffers_per_slot + task.num_threads * per_thread)
    chunk_bytes = max(MIN_CHUNK_BYTES, min(task.chunk_bytes, budget) // 4096 * 4096)
    # The values of a row of FP8 blocks are needed together.
    row_bytes = max(map(block_row_bytes, task.shard.tensors), default=0) if task.outputs else 0
    chunk_bytes = max(chunk_bytes, row_bytes)
    # Rather fewer slots than more memory, for such rows and for hundreds of alphas.
    most = budget_bytes // (chunk_bytes * buffers_per_slot)
    return chunk_bytes, max(1, min(num_slots, most))


def _sum_buffers(task: ShardTask) -> int:
    """Return how many buffers the sums of a trajectory take of every thread."""
    if not task.directions:
        return 0
    # What is read, the first checkpoint and the sums; float32 is twice as wide as bfloat16.
    item_bytes = [max(widths_of(pair)) for pair in task.shard.tensors if pair.path]
    growth = max((4 // width for width in item_bytes), default=1) or 1
    return 1 + (1 + len(task.directions)) * growth


@contextlib.contextmanager
def _pool(num_threads: int) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(num_threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _spread_over(pool: ThreadPoolExecutor, num_waiting: int) -> Spread:
    """Return a `map` by a pool that holds few results, however many blocks a tensor has."""

    def spread(work: Callable[[Chunk], Result], chunks: Iterable[Chunk]) -> Iterator[Result]:
        waiting: deque[Future[Result]] = deque()
        for chunk in chunks:
            if len(waiting) == num_waiting:
                yield waiting.popleft().result()
            waiting.append(pool.submit(work, chunk))
        while waiting:
            yield waiting.popleft().result()

    return spread


def _follow(
    lanes: list[ThreadPoolExecutor], files: list[ShardFile], name: str, computed: _Computed
) -> list[Future[None]]:
    """Queue the bytes of a chunk; a lane has one thread, so that bytes keep their order."""

    # A lane waits for a chunk by itself: woken by another thread, it would idle between chunks.
    def follow(index: int, file: ShardFile) -> None:
        file.follow(name, computed.result()[1][index])

    return [
        lanes[index % len(lanes)].submit(follow, index, file) for index, file in enumerate(files)
    ]


def _input_bytes(pair: TensorPair, chunk: Chunk) -> int:
    # A list: places in files of one layout are equal, and are read on each side.
    sides = [pair.base]
    if chunk.initial_start is not None and pair.initial is not None:
        sides = [pair.initial, *pair.between, pair.aligned, *([pair.onto] if pair.onto else [])]
    return sum(side.input_bytes(chunk.num_elements) for side in sides)


def _own_weights(task: ShardTask, pair: TensorPair, index: int) -> tuple[float, ...]:
    """Return the weights of the checkpoints in one tensor, where they are its own."""
    if not task.outputs or not task.directions:
        return ()
    return task.directions[task.outputs[index].direction].by_tensor.get(pair.name, ())


def _facts(task: ShardTask, sums: list[DeltaSums], index: int) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for pair, total in zip(task.shard.tensors, sums, strict=True):
        for name, dtype, shape in pair.outputs:
            found[name] = {"dtype": dtype, "shape": list(shape)}
        found[pair.name]["statistics"] = {**total.as_dict(), **total.output_dict(index)}
        weights = _own_weights(task, pair, index)
        if weights:
            found[pair.name]["weights"] = list(weights)
    return found
