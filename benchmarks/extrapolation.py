"""The engine against its floor: the same reads and writes without arithmetic and digests.

    python -m benchmarks.extrapolation --layers 22 --hidden 2048 --alphas 1 --workers 1 2

Prints medians over rounds of alternating runs and the ratios of the medians. Floor and engine use
the same chunks, threads, early writing and fsync, in this process without Ray; `BLAKE3 alone` is
what hashing every output byte once costs by itself. Then the whole command on a local Ray, against
the floor and Ray's own start-up, and the fan-out with so many workers. `--cold` drops the inputs
from the page cache before a run. What a worker takes above its imports is measured in a process of
its own.

Needs: 10 GB of disk. Takes: 5 minutes; the four commands of `make bench` half an hour.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from benchmarks.generated_pair import KINDS, add_arguments, write_pair
from expo_ray.checkpoints import ContentDigest
from expo_ray.cluster import ray_session
from expo_ray.extrapolation import extrapolate
from expo_ray.extrapolation.planning.plan import Plan, build_plan
from expo_ray.extrapolation.shards.engine import run_shard
from expo_ray.extrapolation.shards.receipts import RECEIPT_FOLDER
from expo_ray.extrapolation.shards.run_token import RUN_FILE
from expo_ray.extrapolation.shards.shard_files import ShardFile
from expo_ray.extrapolation.shards.tasks import WRITE, ShardOutput, ShardTask, shard_task
from expo_ray.extrapolation.shards.write_behind import start_writing

SHARD_SIZE = "1GB"
CHUNK_BYTES: int = ShardTask.__dataclass_fields__["chunk_bytes"].default
RAY_ONLY = """
import ray
ray.init("local", num_cpus=2, log_to_driver=False)
ray.get(ray.remote(lambda: 0).remote())
ray.shutdown()
"""
PEAK_MEMORY = """
from pathlib import Path
import benchmarks.extrapolation
import expo_ray.extrapolation.shards.engine
from expo_ray.extrapolation.planning.plan import build_plan
from tests.peak_memory import peak_bytes
plan = build_plan({initial!r}, {aligned!r}, **{made!r})
imported = peak_bytes()
benchmarks.extrapolation.run_engine(plan, Path({output!r}), {alphas!r}, {threads!r})
print(peak_bytes() - imported)
"""


def run_engine(plan: Plan, output: Path, alphas: list[float], num_threads: int) -> None:
    """Run all shards in this process, without Ray."""
    outputs = []
    for i, alpha in enumerate(alphas):
        folder = output / str(i)
        (folder / ".expo_ray" / RECEIPT_FOLDER).mkdir(parents=True)
        (folder / ".expo_ray" / RUN_FILE).write_text(json.dumps({"run_token": "x"}))
        outputs.append(ShardOutput(alpha=alpha, folder=str(folder), plan_digest="x", run_token="x"))
    for shard in plan.shards:
        run_shard(shard_task(plan, shard, WRITE, tuple(outputs), num_threads=num_threads))


def run_floor(pair: tuple[Path, Path], output: Path, num_outputs: int, num_threads: int) -> None:
    """Read all files of both sides and write those of aligned, chunk by chunk."""
    for aligned in sorted(pair[1].glob("*.safetensors")):
        paths = (pair[0] / aligned.name, aligned)
        readers = [os.open(path, os.O_RDONLY) for path in paths]
        targets = []
        for i in range(num_outputs):
            (output / str(i)).mkdir(parents=True, exist_ok=True)
            targets.append(os.open(output / str(i) / aligned.name, os.O_WRONLY | os.O_CREAT, 0o666))
        # As many chunks of each side, of one size where the sides have the same dtypes.
        sizes = [path.stat().st_size for path in paths]
        num_chunks = -(-sizes[1] // CHUNK_BYTES)
        bounds = [[i * size // num_chunks for i in range(num_chunks + 1)] for size in sizes]
        largest = [-(-size // num_chunks) for size in sizes]
        slots = deque(
            tuple(memoryview(bytearray(size)) for size in largest) for _ in range(num_threads + 2)
        )

        def move(slot, number, bounds=bounds, readers=readers, targets=targets):
            for view, reader, bound in zip(slot, readers, bounds, strict=True):
                done, length = 0, bound[number + 1] - bound[number]
                while done < length:
                    done += os.preadv(reader, [view[done:length]], bound[number] + done)
            start, length = bounds[1][number], bounds[1][number + 1] - bounds[1][number]
            for target in targets:
                done = 0
                while done < length:
                    done += os.pwrite(target, slot[1][done:length], start + done)
                start_writing(target, start, length)

        running: deque[tuple[Future[None], tuple[memoryview, ...]]] = deque()
        with ThreadPoolExecutor(num_threads) as pool:
            for number in range(num_chunks):
                if not slots:
                    future, slot = running.popleft()
                    future.result()
                    slots.append(slot)
                slot = slots.popleft()
                running.append((pool.submit(move, slot, number), slot))
            for future, _ in running:
                future.result()
        for target in targets:
            os.fsync(target)
            os.close(target)
        for reader in readers:
            os.close(reader)


def run_hash(num_bytes: int) -> None:
    """Hash so many bytes once, in one thread."""
    chunk, digest = bytes(CHUNK_BYTES), ContentDigest()
    for _ in range(num_bytes // CHUNK_BYTES):
        digest.update(chunk)


@contextmanager
def without_digests() -> Iterator[None]:
    """Switch hashing off, to show what it costs."""
    kept = ShardFile.follow

    def count_only(self: ShardFile, name: str, data: memoryview) -> None:
        self.num_bytes += len(data)

    ShardFile.follow = count_only
    try:
        yield
    finally:
        ShardFile.follow = kept


def drop_cache(folder: Path) -> None:
    for file in folder.glob("*/*.safetensors"):
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def touch_memory(file: Path, num_bytes: int) -> None:
    """Write a file and delete it: a virtual machine gives the same memory back at once.

    Memory that lay idle has to be fetched from the host first, which takes longer than all the
    rest and would meet whichever run comes after a pause.
    """
    with file.open("wb") as stream:
        for _ in range(num_bytes // CHUNK_BYTES):
            stream.write(bytes(CHUNK_BYTES))
    file.unlink()


def rounds(
    kinds: dict[str, Callable[[Path], object]], file_bytes: int, folder: Path, options
) -> dict:
    """Run every kind in turn, in random order each round; return (wall, CPU) seconds of each.

    Args:
        kinds: Each takes the folder that it may write to.
        file_bytes: What one output takes.
        folder: Where the pair lies, and what is written for a while.
        options: Of the command line.
    """
    found: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    shuffler = random.Random(0)
    for number in range(options.repeats + 1):
        for kind in shuffler.sample(list(kinds), len(kinds)):
            output = folder / "out"
            touch_memory(folder / "scratch", options.alphas * file_bytes)
            if options.cold:
                drop_cache(folder)
            started, used = time.perf_counter(), time.process_time()
            kinds[kind](output)
            seconds = time.perf_counter() - started, time.process_time() - used
            shutil.rmtree(output, ignore_errors=True)
            os.sync()
            # The first round warms up the code, the cache and the allocator.
            if number:
                found[kind].append(seconds)
    return found


def show(found: dict, num_bytes: int, *, in_process: bool = False) -> list[float]:
    """Print medians of all kinds and return those of wall seconds.

    Where all work is done in this process, its CPU seconds are shown too: divided by the cores,
    they are the least time that any number of threads could take.
    """
    medians = [statistics.median(wall for wall, _ in taken) for taken in found.values()]
    floor = medians[list(found).index("floor")]
    for (kind, taken), median in zip(found.items(), medians, strict=True):
        walls = [wall for wall, _ in taken]
        used = statistics.median(cpu for _, cpu in taken)
        print(
            f"{kind:34} {median:7.2f} s ({min(walls):.2f} to {max(walls):.2f}) "
            f"{num_bytes / median / 2**20:6.0f} MiB/s {median / floor:5.2f}x floor"
            + (f", {used:5.2f} s of CPU" if in_process else ""),
            flush=True,
        )
    return medians


def command(pair: tuple[Path, Path], output: Path, alphas: list[float]) -> None:
    program = Path(sys.executable).parent / "expo-ray"
    line = [program, "extrapolate", *pair, output]
    line += ["--max-shard-size", SHARD_SIZE, "--quiet", "--address", "local"]
    for alpha in alphas:
        line += ["--alpha", str(alpha)]
    subprocess.run(line, check=True, stdout=subprocess.DEVNULL)


def peak_memory_bytes(
    pair: tuple[Path, Path], made: dict, output: Path, alphas: list[float], num_threads: int
) -> int:
    """Return what a process takes above its imports while it does all shards."""
    code = PEAK_MEMORY.format(
        initial=str(pair[0]),
        aligned=str(pair[1]),
        made=made,
        output=str(output),
        alphas=alphas,
        threads=num_threads,
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    shutil.rmtree(output)
    return int(found.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--alphas", type=int, default=1)
    parser.add_argument("--kind", choices=KINDS, default="bfloat16", help="dtypes of the pair")
    parser.add_argument("--transform", action="append", default=[], help="of delta, repeatable")
    parser.add_argument("--engine-only", action="store_true", help="nothing that starts Ray")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--cold", action="store_true")
    options = parser.parse_args()
    alphas = [round(0.1 * (i + 1), 1) for i in range(options.alphas)]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        pair = write_pair(folder, options.layers, options.hidden, options.kind)
        made = {"max_shard_size": SHARD_SIZE, "transforms": options.transform}
        plan = build_plan(*map(str, pair), **made)
        moved = plan.input_bytes + plan.file_bytes * len(alphas)
        state = "cold" if options.cold else "warm"
        print(
            f"{options.kind}, {plan.input_bytes / 2**30:.2f} GiB read, {len(alphas)} outputs of "
            f"{plan.file_bytes / 2**30:.2f} GiB, {state} cache, {os.cpu_count()} cores, "
            f"load {os.getloadavg()[0]:.1f} at the start",
            flush=True,
        )

        def engine(output: Path) -> None:
            run_engine(plan, output, alphas, options.threads)

        def engine_alone(output: Path) -> None:
            with without_digests():
                engine(output)

        kinds: dict[str, Callable[[Path], object]] = {
            "floor": lambda out: run_floor(pair, out, len(alphas), options.threads),
            "BLAKE3 alone, one thread": lambda _: run_hash(plan.file_bytes * len(alphas)),
            "engine without digests": engine_alone,
            "engine, all digests": engine,
        }
        show(rounds(kinds, plan.file_bytes, folder, options), moved, in_process=True)
        above = peak_memory_bytes(pair, made, folder / "out", alphas, options.threads)
        print(f"a worker above its imports: {above / 2**20:.0f} MiB at the most (limit 256)")
        if options.engine_only:
            return
        whole: dict[str, Callable[[Path], object]] = {
            "floor": kinds["floor"],
            "Ray's start-up": lambda _: subprocess.run(
                [sys.executable, "-c", RAY_ONLY], check=True, capture_output=True
            ),
            "whole command": lambda out: command(pair, out, alphas),
        }
        floor, start_up, total = show(rounds(whole, plan.file_bytes, folder, options), moved)
        print(f"whole command less Ray's start-up: {(total - start_up) / floor:.2f}x floor")
        for num_workers in options.workers:
            with ray_session("local", num_cpus=num_workers):

                def fan_out(output: Path) -> None:
                    extrapolate(*pair, output, alpha=alphas, max_shard_size=SHARD_SIZE)

                kinds = {"floor": kinds["floor"], f"{num_workers} workers": fan_out}
                show(rounds(kinds, plan.file_bytes, folder, options), moved)


if __name__ == "__main__":
    main()
