"""The whole command against mergekit 0.1.5 on one generated pair: time, CPU, equal weights.

    python benchmarks/mergekit_comparison.py --layers 16 --hidden 1024 --repeats 3

mergekit gets a virtual environment of its own, `.venv-mergekit`, which borrows torch and
transformers from the one this runs in, so that both compute with the same libraries. It runs the
configuration that `--export-mergekit` writes. `--layers 22 --hidden 2048` is a 1.1B pair,
`--layers 26 --hidden 3072` about 3B. Everything generated is deleted afterwards.
"""

from __future__ import annotations

import argparse
import json
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
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv-mergekit"
VERSION = "0.1.5"
VOCABULARY = 32_000
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


def shapes(layers: int, hidden: int) -> dict[str, tuple[int, ...]]:
    inner = hidden * 11 // 4
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, hidden)}
    for i in range(layers):
        prefix = f"model.layers.{i}."
        found |= {f"{prefix}self_attn.{n}_proj.weight": (hidden, hidden) for n in "qkvo"}
        found |= {f"{prefix}mlp.{n}_proj.weight": (inner, hidden) for n in ("gate", "up")}
        found[f"{prefix}mlp.down_proj.weight"] = (hidden, inner)
        found |= {f"{prefix}{n}_layernorm.weight": (hidden,) for n in ("input", "post_attention")}
    return {**found, "model.norm.weight": (hidden,), "lm_head.weight": (VOCABULARY, hidden)}


def generate(folder: Path, layers: int, hidden: int) -> tuple[Path, Path]:
    """Write two Llama checkpoints in bfloat16, in shards of 1 GB."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": hidden * 11 // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 64,
        "num_key_value_heads": hidden // 64,
        "vocab_size": VOCABULARY,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    generator = torch.Generator().manual_seed(0)
    pool = torch.randn(1 << 22, generator=generator)
    sides = {"initial": folder / "initial", "aligned": folder / "aligned"}
    groups: list[list[str]] = [[]]
    table = shapes(layers, hidden)
    size = 0
    for name, shape in table.items():
        num_bytes = 2 * torch.Size(shape).numel()
        if size + num_bytes > 10**9:
            groups.append([])
            size = 0
        groups[-1].append(name)
        size += num_bytes
    for side, path in sides.items():
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(config))
        weight_map = {}
        for number, group in enumerate(groups, start=1):
            file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
            tensors = {}
            for name in group:
                count = torch.Size(table[name]).numel()
                values = pool.repeat(-(-count // pool.numel()))[:count] * 0.02
                if side == "aligned":
                    values += pool.roll(len(name)).repeat(-(-count // pool.numel()))[:count] * 1e-3
                tensors[name] = values.to(torch.bfloat16).reshape(table[name])
            save_file(tensors, path / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(group, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return sides["initial"], sides["aligned"]


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
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--address", default="inline", help="inline, or local to include Ray")
    parser.add_argument("--folder", type=Path, help="where to work; deleted afterwards")
    arguments = parser.parse_args()
    mergekit = str(install())
    expo_ray = str(Path(sys.executable).parent / "expo-ray")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        initial, aligned = generate(folder, arguments.layers, arguments.hidden)
        num_bytes = sum(file.stat().st_size for file in aligned.glob("*.safetensors"))
        recipe, ours, theirs = folder / "merge.yaml", folder / "ours", folder / "theirs"
        command = [expo_ray, "extrapolate", str(initial), str(aligned), str(ours), "--quiet"]
        command += ["--alpha", str(ALPHA), "--address", arguments.address]
        exported = [*command, "--dry-run", "--export-mergekit", str(recipe)]
        subprocess.run(exported, check=True, stdout=subprocess.DEVNULL)
        commands = {
            "expo-ray": (command, ours),
            f"mergekit {VERSION}": ([mergekit, str(recipe), str(theirs), "--quiet"], theirs),
        }
        seconds: dict[str, list[float]] = {kind: [] for kind in commands}
        load = os.getloadavg()[0]
        print(f"{num_bytes / 2**30:.2f} GiB per side, {arguments.address}, load {load:.1f}")
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
