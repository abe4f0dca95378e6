"""A forecast from N checkpoints (rank1) against a script with all changes in memory.

    python -m benchmarks.trajectory --layers 16 --hidden 1024 --checkpoints 10 --repeats 3

The script is what the paper of RELEX (arXiv:2605.21468) describes, written straight down: load all
checkpoints, stack the changes of each tensor, singular value decomposition, a line through the
coefficients, predict, save. It gets the same real steps. Both run in processes of their own, in
turn, with a warm page cache; peak memory is that above their imports. Everything generated is
deleted afterwards.

Needs: memory and disk of 5 GB for the default. Takes: 10 minutes.
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
before, started = peak_bytes(), time.perf_counter()
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
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "peak": peak_bytes() - before}))
"""
OURS = """
import json, sys, time

import torch
import transformers
from expo_ray.extrapolation.shards.attempts import attempt_shard
from expo_ray.extrapolation.trajectories.job import extrapolate_trajectory
from tests.peak_memory import peak_bytes

torch.linalg.svd(torch.randn(4, 8))
before, started = peak_bytes(), time.perf_counter()
extrapolate_trajectory(
    sys.argv[1], sys.argv[2], fit="rank1", start="fitted", at_step=float(sys.argv[3]),
    max_shard_size="100GB", address="inline",
)
seconds = time.perf_counter() - started
print(json.dumps({"seconds": seconds, "peak": peak_bytes() - before}))
"""
SIDES = {"script": SCRIPT, "expo_ray": OURS}


def write_path(folder: Path, *, layers: int, hidden: int, num_checkpoints: int) -> int:
    """Write checkpoints along a line with noise, in bfloat16; return the bytes of one."""
    tensors_of = shapes(layers, hidden)
    generator = torch.Generator().manual_seed(0)
    base = {n: torch.randn(s, generator=generator) * 0.02 for n, s in tensors_of.items()}
    ahead = {n: torch.randn(s, generator=generator) * 1e-4 for n, s in tensors_of.items()}
    size = 0
    for number in range(num_checkpoints):
        place = folder / f"checkpoint-{100 * (number + 1)}"
        place.mkdir(parents=True)
        tensors = {
            name: (base[name] + number * ahead[name] + 3e-5 * torch.randn(shape)).bfloat16()
            for name, shape in tensors_of.items()
        }
        save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
        (place / "config.json").write_text(json.dumps({"model_type": "synthetic"}))
        size = (place / "model.safetensors").stat().st_size
    return size


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
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trajectory-", dir=given.folder) as place:
        folder, runs = Path(place) / "run", {s: [] for s in SIDES}
        sizes = {"layers": given.layers, "hidden": given.hidden}
        size = write_path(folder, num_checkpoints=given.checkpoints, **sizes)
        target = 200.0 * given.checkpoints
        print(f"{given.checkpoints} checkpoints of {size / 2**30:.2f} GiB, {os.cpu_count()} cores, "
              f"load {os.getloadavg()[0]:.1f} at the start")  # fmt: skip
        outputs = {side: Path(place) / side for side in SIDES}
        for _ in range(given.repeats):
            for side, found in runs.items():
                found.append(measure(side, folder, outputs[side], target))
        for side, found in runs.items():
            seconds = [one["seconds"] for one in found]
            peak = statistics.median(one["peak"] for one in found)
            print(f"{side:10} {statistics.median(seconds):7.2f} s ({min(seconds):.2f} to "
                  f"{max(seconds):.2f})  peak {peak / 2**20:7.0f} MiB above imports  "
                  f"disk {found[0]['disk'] / 2**20:.0f} MiB")  # fmt: skip
        pairs = zip(runs["script"], runs["expo_ray"], strict=True)
        ratios = [(a["seconds"] / b["seconds"], a["peak"] / b["peak"]) for a, b in pairs]
        speed, memory = (statistics.median(column) for column in zip(*ratios, strict=True))
        print(f"paired medians: {speed:.2f} times as fast, {1 / memory:.3f} of the memory")
        files = [outputs[side] / "model.safetensors" for side in SIDES]
        differ, far, total = compare(*files)
        print(f"weights: {differ / total:.2e} of them differ, {far} by more than one rounding")


if __name__ == "__main__":
    main()
