"""The shard engine against its floor: the same reads and writes without arithmetic and digests.

    python benchmarks/extrapolation.py --gib 1 --repeats 5 --alphas 1

Prints medians over pairs of runs, one after the other, and the ratios of the medians. Both sides
use the same chunks, threads, early writing and fsync. `cold` drops the inputs from the page cache
before a run.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from expo_ray.checkpoints.header import build_header
from expo_ray.extrapolation.engine import run_shard
from expo_ray.extrapolation.plan import Plan, build_plan
from expo_ray.extrapolation.shard_files import RECEIPT_FOLDER, RUN_FILE, ShardFile
from expo_ray.extrapolation.tasks import WRITE, ShardOutput, shard_task
from expo_ray.extrapolation.write_behind import start_writing

HIDDEN = 4096
CHUNK_BYTES = 2 * 1024 * 1024


def generate(folder: Path, num_bytes: int) -> tuple[Path, Path]:
    """Write a bfloat16 pair of matrices, about `num_bytes` per side, in shards of 1 GB."""
    matrix_bytes = HIDDEN * HIDDEN * 2
    num_matrices = max(1, round(num_bytes / matrix_bytes))
    generator = torch.Generator().manual_seed(0)
    before = (torch.randn(HIDDEN * HIDDEN, generator=generator) * 0.02).to(torch.bfloat16)
    after = before + (torch.randn(HIDDEN * HIDDEN, generator=generator) * 1e-3).to(torch.bfloat16)
    per_file = max(1, 10**9 // matrix_bytes)
    for name, values in (("initial", before), ("aligned", after)):
        side = folder / name
        side.mkdir(parents=True)
        (side / "config.json").write_text(json.dumps({"model_type": "benchmark"}))
        raw = values.view(torch.uint8).numpy().tobytes()
        names = [f"layers.{i:04d}.weight" for i in range(num_matrices)]
        groups = [names[i : i + per_file] for i in range(0, num_matrices, per_file)]
        weight_map = {}
        for number, group in enumerate(groups, start=1):
            file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            with (side / file).open("wb") as stream:
                stream.write(build_header([(n, "BF16", (HIDDEN, HIDDEN)) for n in group]))
                for _ in group:
                    stream.write(raw)
                os.fsync(stream.fileno())
            weight_map.update(dict.fromkeys(group, file))
        index = {"metadata": {}, "weight_map": weight_map}
        (side / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder / "initial", folder / "aligned"


def run_engine(plan: Plan, output: Path, alphas: list[float], num_threads: int) -> float:
    """Return the seconds of all shards, in this process, without Ray."""
    outputs = []
    for i, alpha in enumerate(alphas):
        folder = output / str(i)
        (folder / ".expo_ray" / RECEIPT_FOLDER).mkdir(parents=True)
        (folder / ".expo_ray" / RUN_FILE).write_text(json.dumps({"run_token": "x"}))
        outputs.append(ShardOutput(alpha=alpha, folder=str(folder), plan_digest="x", run_token="x"))
    started = time.perf_counter()
    for shard in plan.shards:
        task = shard_task(
            plan, shard, WRITE, tuple(outputs), num_threads=num_threads, chunk_bytes=CHUNK_BYTES
        )
        run_shard(task)
    return time.perf_counter() - started


def run_floor(plan: Plan, output: Path, num_outputs: int, num_threads: int) -> float:
    """Return the seconds of reading both sides and writing aligned, chunk by chunk."""
    pair = plan.pair
    started = time.perf_counter()
    for shard in plan.shards:
        targets = []
        for i in range(num_outputs):
            (output / str(i)).mkdir(parents=True, exist_ok=True)
            targets.append(os.open(output / str(i) / shard.name, os.O_WRONLY | os.O_CREAT, 0o666))
        readers = {
            (side, file): os.open(Path(checkpoint.uri) / file, os.O_RDONLY)
            for side, checkpoint in (("initial", pair.initial), ("aligned", pair.aligned))
            for file in checkpoint.files
        }
        slots = deque(
            tuple(memoryview(bytearray(CHUNK_BYTES)) for _ in range(2))
            for _ in range(num_threads + 2)
        )
        header = shard.header
        for target in targets:
            os.pwrite(target, header, 0)

        def move(slot, places, position, length, targets=targets, readers=readers):
            for view, (side, file, offset) in zip(slot, places, strict=True):
                done = 0
                while done < length:
                    part = view[done:length]
                    done += os.preadv(readers[side, file], [part], offset + done)
            for target in targets:
                done = 0
                while done < length:
                    done += os.pwrite(target, slot[1][done:length], position + done)
                start_writing(target, position, length)

        position = len(header)
        running: deque[tuple[Future[None], tuple[memoryview, memoryview]]] = deque()
        with ThreadPoolExecutor(num_threads) as pool:
            for p in shard.tensors:
                for start in range(0, p.aligned.num_bytes, CHUNK_BYTES):
                    length = min(CHUNK_BYTES, p.aligned.num_bytes - start)
                    if not slots:
                        future, slot = running.popleft()
                        future.result()
                        slots.append(slot)
                    slot = slots.popleft()
                    places = (
                        ("initial", p.initial.file, p.initial.offset_bytes + start),
                        ("aligned", p.aligned.file, p.aligned.offset_bytes + start),
                    )
                    running.append((pool.submit(move, slot, places, position, length), slot))
                    position += length
            for future, _ in running:
                future.result()
        for target in targets:
            os.fsync(target)
            os.close(target)
        for reader in readers.values():
            os.close(reader)
    return time.perf_counter() - started


@contextmanager
def digests(*, of_files: bool, of_tensors: bool) -> Iterator[None]:
    """Switch kinds of hashing off, to show what they cost."""
    kept = ShardFile.hash_file, ShardFile.hash_tensor

    def count_only(self: ShardFile, data: memoryview) -> None:
        self.num_bytes += len(data)

    if not of_files:
        ShardFile.hash_file = count_only
    if not of_tensors:
        ShardFile.hash_tensor = lambda self, name, data: None
    try:
        yield
    finally:
        ShardFile.hash_file, ShardFile.hash_tensor = kept


def drop_cache(plan: Plan) -> None:
    for checkpoint in (plan.pair.initial, plan.pair.aligned):
        for file in checkpoint.files:
            descriptor = os.open(Path(checkpoint.uri) / file, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def measure(plan: Plan, folder: Path, cold: bool, run: Callable[[Path], float]):
    """Return wall and CPU seconds of one run; the CPU is what a busy machine distorts least."""
    output = folder / "out"
    if cold:
        drop_cache(plan)
    before = time.process_time()
    seconds = run(output), time.process_time() - before
    shutil.rmtree(output)
    os.sync()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=1.0, help="size of one side")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--alphas", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--folder", type=Path, help="where to work; deleted afterwards")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        plan = build_plan(*generate(folder, int(arguments.gib * 2**30)), max_shard_size="1GB")
        alphas = [0.1 * (i + 1) for i in range(arguments.alphas)]
        switches = {
            "engine": {"of_files": True, "of_tensors": True},
            "engine, sha256 of shards only": {"of_files": True, "of_tensors": False},
            "engine without digests": {"of_files": False, "of_tensors": False},
        }
        found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in ("floor", *switches)}
        load = os.getloadavg()[0]
        for _ in range(arguments.repeats + 1):
            # One of each, one after the other, so that drifts of the machine meet all alike.
            for kind, runs in found.items():

                def run(output: Path, kind: str = kind) -> float:
                    if kind == "floor":
                        return run_floor(plan, output, len(alphas), arguments.threads)
                    with digests(**switches[kind]):
                        return run_engine(plan, output, alphas, arguments.threads)

                runs.append(measure(plan, folder, arguments.cold, run))
        moved = plan.input_bytes + plan.file_bytes * len(alphas)
        state = "cold" if arguments.cold else "warm"
        print(
            f"{moved / 2**30:.2f} GiB moved, {len(alphas)} alphas, {state} cache, "
            f"{os.cpu_count()} cores, load {load:.1f} at the start"
        )
        # The first of each warms up the code, the cache and the allocator.
        walls = {kind: [wall for wall, _ in runs[1:]] for kind, runs in found.items()}
        works = {kind: statistics.median(w for _, w in runs[1:]) for kind, runs in found.items()}
        floor = statistics.median(walls["floor"])
        for kind, seconds in walls.items():
            median = statistics.median(seconds)
            spread = f"{min(seconds):.2f} to {max(seconds):.2f}"
            print(
                f"{kind:30} {median:7.2f} s ({spread}) {moved / median / 2**20:6.0f} MiB/s "
                f"{median / floor:5.2f}x floor; CPU {works[kind]:6.2f} s "
                f"{works[kind] / works['floor']:5.2f}x floor"
            )


if __name__ == "__main__":
    main()
