"""The whole command against mergekit 0.1.5 on one generated pair: time, CPU, equal weights.

    python -m benchmarks.mergekit_comparison --layers 22 --hidden 2048 --repeats 3

mergekit gets a virtual environment of its own, `.venv-mergekit`, which borrows torch and
transformers from the one this runs in, so that both compute with the same libraries. It runs the
configuration that `--export-mergekit` writes. Everything generated is deleted afterwards.

Needs: PyPI, to install mergekit, and 10 GB of disk. Takes: 5 minutes.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import statistics
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from pathlib import Path

import torch
from safetensors import safe_open

from benchmarks.generated_pair import add_arguments, write_pair

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv-mergekit"
VERSION = "0.1.5"
ALPHA = 0.3


def install() -> Path:
    """Return the mergekit command, installing it when it is missing."""
    command = ENVIRONMENT / "bin" / "mergekit-yaml"
    if not command.exists():
        venv.create(ENVIRONMENT, with_pip=True)
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        packages = ENVIRONMENT / "lib" / version / "site-packages"
        (packages / "shared.pth").write_text(sysconfig.get_path("purelib") + "\n")
        pip = [str(ENVIRONMENT / "bin" / "pip"), "install", "--quiet", f"mergekit=={VERSION}"]
        subprocess.run(pip, check=True)
    return command


def timed(command: list[str], output: Path) -> tuple[float, float]:
    """Run a command; return its wall and CPU seconds."""
    shutil.rmtree(output, ignore_errors=True)
    os.sync()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    found = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    seconds = time.perf_counter() - started
    if found.returncode:
        raise SystemExit(f"{command[0]} failed: {found.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def compare(first: Path, second: Path) -> tuple[int, int]:
    """Return the elements that differ by more than one rounding step, and all elements."""
    where = {
        name: folder_file
        for folder_file in sorted(second.glob("*.safetensors"))
        for name in _names(folder_file)
    }
    num_different = num_elements = 0
    for file in sorted(first.glob("*.safetensors")):
        with safe_open(file, "pt") as ours:
            for name in ours.keys():  # noqa: SIM118
                with safe_open(where[name], "pt") as theirs:
                    one, two = ours.get_tensor(name), theirs.get_tensor(name)
                steps = (one.view(torch.int16).int() - two.view(torch.int16).int()).abs()
                num_different += int((steps > 1).sum())
                num_elements += one.numel()
    return num_different, num_elements


def _names(file: Path) -> list[str]:
    with safe_open(file, "pt") as opened:
        return list(opened.keys())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--address", help="local or inline; without it, where the command would")
    arguments = parser.parse_args()
    mergekit = str(install())
    expo_ray = str(Path(sys.executable).parent / "expo-ray")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        initial, aligned = write_pair(folder, arguments.layers, arguments.hidden)
        num_bytes = sum(file.stat().st_size for file in aligned.glob("*.safetensors"))
        recipe, ours, theirs = folder / "merge.yaml", folder / "ours", folder / "theirs"
        command = [expo_ray, "extrapolate", str(initial), str(aligned), str(ours), "--quiet"]
        command += ["--alpha", str(ALPHA)]
        if arguments.address:
            command += ["--address", arguments.address]
        exported = [*command, "--dry-run", "--export-mergekit", str(recipe)]
        subprocess.run(exported, check=True, stdout=subprocess.DEVNULL)
        commands = {
            "expo-ray": (command, ours),
            f"mergekit {VERSION}": ([mergekit, str(recipe), str(theirs), "--quiet"], theirs),
        }
        seconds: dict[str, list[float]] = {kind: [] for kind in commands}
        load, place = os.getloadavg()[0], arguments.address or "by default"
        print(f"{num_bytes / 2**30:.2f} GiB per side, {place}, load {load:.1f}")
        for _ in range(arguments.repeats):
            # One of each, one after the other, so that drifts of the machine meet both alike.
            for kind, (line, output) in commands.items():
                wall, cpu = timed(line, output)
                seconds[kind].append(wall)
                print(f"{kind:16} {wall:7.2f} s wall {cpu:7.2f} s of CPU", flush=True)
        first, second = (statistics.median(values) for values in seconds.values())
        print(f"expo-ray / mergekit: {first / second:.2f} (ratio of medians)")
        different, total = compare(ours, theirs)
        print(f"{different} of {total} weights differ by more than one rounding step")


if __name__ == "__main__":
    main()
