"""A forecast from N checkpoints (rank1) against a script with all changes in memory.

    python -m benchmarks.trajectory --layers 16 --hidden 1024 --checkpoints 10 --repeats 3

The script is what the paper of RELEX (arXiv:2605.21468) describes, written straight down: load all
checkpoints, stack the changes of each tensor, singular value decomposition, a line through the
coefficients, predict, save. It gets the same real steps. Both run in processes of their own, in
turn, with a warm page cache; peak memory is that above their imports, seconds of CPU depend less on
what else a machine does. With `--ours-only`, for sizes that the script has no memory for, its need
is only computed; `--layers 17 --hidden 2048 --ours-only`, a billion parameters, needs 23 GB of
disk. Everything generated is deleted afterwards.

Needs: disk of 7 GB and memory of 9 GB. Takes: 10 minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from benchmarks.generated_pair import add_arguments, shapes

SCRIPT = """
import json, sys, time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tests.peak_memory import peak_bytes

torch.linalg.svd(torch.randn(4, 8))
folder, output, target = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
before, started, worked = peak_bytes(), time.perf_counter(), time.process_time()
places = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
steps = torch.tensor([float(path.name.split("-")[1]) for path in places], dtype=torch.float64)
models = [load_file(path / "model.safetensors") for path in places]
found = {}
for name, first in models[0].items():
    base = first.float()
    changes = torch.stack([(model[name].float() - base).flatten() for model in models[1:]])
    u, sigma, v = torch.linalg.svd(changes, full_matrices=False)
    coefficients = (u[:, 0] * sigma[0]).double()
    slope, intercept = np.polyfit(steps[1:].numpy(), coefficients.numpy(), 1)
    predicted = base + (slope * target + intercept) * v[0].reshape(base.shape)
    found[name] = predicted.to(first.dtype)
output.mkdir(parents=True)
save_file(found, output / "model.safetensors", metadata={"format": "pt"})
found = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - worked}
print(json.dumps({**found, "peak": peak_bytes() - before}))
"""
OURS = """
import json, sys, time

import torch
import transformers
from expo_ray.extrapolation.shards.attempts import attempt_shard
from expo_ray.extrapolation.trajectories.job import extrapolate_trajectory
from tests.peak_memory import peak_bytes

torch.linalg.svd(torch.randn(4, 8))
before, started, worked = peak_bytes(), time.perf_counter(), time.process_time()
extrapolate_trajectory(
    sys.argv[1], sys.argv[2], fit="rank1", start="fitted", at_step=float(sys.argv[3]),
    max_shard_size="100GB", address="inline",
)
found = {"seconds": time.perf_counter() - started, "cpu": time.process_time() - worked}
print(json.dumps({**found, "peak": peak_bytes() - before}))
"""
SIDES = {"script": SCRIPT, "expo_ray": OURS}
POOL = 1 << 22


def write_path(folder: Path, *, layers: int, hidden: int, num_checkpoints: int) -> int:
    """Write checkpoints along a line with noise, in bfloat16; return the bytes of one."""
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(POOL, generator=generator)
    size = 0
    for number in range(num_checkpoints):
        place = folder / f"checkpoint-{100 * (number + 1)}"
        place.mkdir(parents=True)
        tensors = {
            name: _along(pool, shape, number).bfloat16()
            for name, shape in shapes(layers, hidden).items()
        }
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
        (place / "config.json").write_text(json.dumps({"model_type": "synthetic"}))
        size = (place / "model.safetensors").stat().st_size
    return size


def _along(pool: torch.Tensor, shape: tuple[int, ...], number: int) -> torch.Tensor:
    """Return one tensor of a checkpoint; the pool is repeated, so that little is held at a time."""
    count = torch.Size(shape).numel()
    # Turned by other numbers for base, direction and noise, which share no order then.
    turned = (0.02, 0), (1e-4 * number, count % 1013 + 1), (3e-5, 4096 + 997 * (number + 1))
    values = sum(factor * pool.roll(by) for factor, by in turned)
    assert isinstance(values, torch.Tensor)
    return values.repeat(-(-count // POOL))[:count].reshape(shape)


def script_bytes(layers: int, hidden: int, num_checkpoints: int) -> int:
    """Return what the script takes at most: all checkpoints, its output, and the largest tensor.

    Of that the float32 changes twice, as they are stacked and decomposed, and the right factor.
    Checkpoints are mapped: where memory is scarce the system lets their pages go.
    """
    sizes = [torch.Size(shape).numel() for shape in shapes(layers, hidden).values()]
    stored = 2 * (num_checkpoints + 1) * sum(sizes)
    return stored + 3 * 4 * (num_checkpoints - 1) * max(sizes)


def measure(side: str, folder: Path, output: Path, target: float) -> dict[str, float]:
    """Run one side in a process of its own."""
    shutil.rmtree(output, ignore_errors=True)
    os.sync()
    command = [sys.executable, "-c", SIDES[side], str(folder), str(output), str(target)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    found["disk"] = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    return found


def compare(first: Path, second: Path) -> tuple[int, int, int]:
    """Return elements that differ at all, by more than one rounding, and all elements."""
    differ = far = total = 0
    with safe_open(first, "pt") as ours, safe_open(second, "pt") as theirs:
        for name in ours.keys():  # noqa: SIM118
            one, two = ours.get_tensor(name), theirs.get_tensor(name)
            steps = (one.view(torch.int16).int() - two.view(torch.int16).int()).abs()
            differ += int((steps > 0).sum())
            far += int((steps > 1).sum())
            total += one.numel()
    return differ, far, total


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add_arguments(parser)
    parser.set_defaults(layers=16, hidden=1024, repeats=3)
    parser.add_argument("--checkpoints", type=int, default=10)
    parser.add_argument("--ours-only", action="store_true", help="do not run the script")
    given = parser.parse_args()
    sides = ["expo_ray"] if given.ours_only else list(SIDES)
    with tempfile.TemporaryDirectory(prefix="trajectory-", dir=given.folder) as place:
        folder, runs = Path(place) / "run", {side: [] for side in sides}
        sizes = {"layers": given.layers, "hidden": given.hidden}
        size = write_path(folder, num_checkpoints=given.checkpoints, **sizes)
        target = 200.0 * given.checkpoints
        print(f"{given.checkpoints} checkpoints of {size / 2**30:.2f} GiB, {os.cpu_count()} cores, "
              f"load {os.getloadavg()[0]:.1f} at the start")  # fmt: skip
        need = script_bytes(given.layers, given.hidden, given.checkpoints)
        print(f"the script takes up to {need / 2**30:.1f} GiB, mapped files among them", flush=True)
        outputs = {side: Path(place) / side for side in sides}
        for _ in range(given.repeats):
            for side, found in runs.items():
                found.append(measure(side, folder, outputs[side], target))
                print(f"{side}: {found[-1]}, load {os.getloadavg()[0]:.1f}", flush=True)
        for side, found in runs.items():
            seconds = [one["seconds"] for one in found]
            cpu = statistics.median(one["cpu"] for one in found)
            peak = statistics.median(one["peak"] for one in found)
            print(f"{side:10} {statistics.median(seconds):7.2f} s ({min(seconds):.2f} to "
                  f"{max(seconds):.2f})  CPU {cpu:.2f} s  peak {peak / 2**20:7.0f} MiB above "
                  f"imports  disk {found[0]['disk'] / 2**20:.0f} MiB")  # fmt: skip
        if given.ours_only:
            return
        pairs = list(zip(runs["script"], runs["expo_ray"], strict=True))
        speed, cpu, memory = (
            statistics.median(a[what] / b[what] for a, b in pairs)
            for what in ("seconds", "cpu", "peak")
        )
        print(f"paired medians: {speed:.2f} times as fast, {cpu:.2f} in seconds of CPU, "
              f"{1 / memory:.3f} of the memory")  # fmt: skip
        files = [outputs[side] / "model.safetensors" for side in SIDES]
        differ, far, total = compare(*files)
        print(f"weights: {differ / total:.2e} of them differ, {far} by more than one rounding")


if __name__ == "__main__":
    main()
