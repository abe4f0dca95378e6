"""Small checkpoints of any tensors, and the closed form to compare with."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from expo_ray.checkpoints.formats.header import build_header, tensor_bytes

IDENTITY_FILES = ("expo_ray.json", "README.md")


def write(
    folder: Path,
    tensors: dict[str, torch.Tensor],
    *,
    num_shards: int = 1,
    **config: object,
) -> Path:
    """Write an ordinary checkpoint; tensors go round-robin into the shards."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = {"model_type": "synthetic", "architectures": ["Synthetic"], **config}
    (folder / "config.json").write_text(json.dumps(settings))
    if num_shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return folder
    names = [f"model-{i:05d}-of-{num_shards:05d}.safetensors" for i in range(1, num_shards + 1)]
    weight_map = {name: names[i % num_shards] for i, name in enumerate(sorted(tensors))}
    for file in names:
        part = {n: t for n, t in tensors.items() if weight_map[n] == file}
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def load(folder: Path) -> dict[str, torch.Tensor]:
    """Read all weights with the safetensors library."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors.update(load_file(file))
    return tensors


def closed_form(
    initial: torch.Tensor, aligned: torch.Tensor, alpha: float, dtype: torch.dtype | None = None
) -> torch.Tensor:
    """The formula as the contract writes it, on whole tensors."""
    if not aligned.dtype.is_floating_point:
        return aligned
    if torch.float64 in (initial.dtype, aligned.dtype):
        one, two = aligned.double(), torch.tensor(alpha, dtype=torch.float64)
        result = one + two * (one - initial.double())
    else:
        one, two = aligned.float(), torch.tensor(alpha, dtype=torch.float32)
        result = one + two * (one - initial.float())
    return result.to(dtype or aligned.dtype)


def same_bits(first: torch.Tensor, second: torch.Tensor) -> bool:
    """Compare dtype, shape and bytes."""
    if first.dtype != second.dtype or first.shape != second.shape:
        return False
    one, two = (t.contiguous().reshape(-1).view(torch.uint8) for t in (first, second))
    return torch.equal(one, two)


def file_digests(folder: Path) -> dict[str, str]:
    """sha256 of all files that two equal runs must have in common."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in IDENTITY_FILES
    }


def noise(
    shape: tuple[int, ...], dtype: torch.dtype, seed: int, scale: float = 1.0
) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def write_experts(
    folder: Path, *, num_tensors: int, num_files: int, element: bytes = b"", num_elements: int = 128
) -> Path:
    """Write a mixture of experts with very many bf16 tensors.

    All elements have the same two bytes; without them the weights are holes in the files.
    """
    shape = (num_elements // 16, 16)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "synthetic"}))
    matrices = ("gate", "up", "down")
    names = [
        f"model.layers.{i // 768}.mlp.experts.{i // 3 % 256}.{matrices[i % 3]}_proj.weight"
        for i in range(num_tensors)
    ]
    weight_map: dict[str, str] = {}
    for i in range(num_files):
        part = names[i * num_tensors // num_files : (i + 1) * num_tensors // num_files]
        file = f"model-{i + 1:05d}-of-{num_files:05d}.safetensors"
        header = build_header([(name, "BF16", shape) for name in part])
        num_bytes = len(part) * tensor_bytes("BF16", shape)
        (folder / file).write_bytes(header + element * (num_bytes // 2))
        os.truncate(folder / file, len(header) + num_bytes)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def change_tasks(monkeypatch: pytest.MonkeyPatch, **changes: object) -> None:
    """Let every shard be worked on in another way: other chunks, another number of threads."""
    from expo_ray.extrapolation import writing

    planned = writing.plan_tasks
    monkeypatch.setattr(
        writing,
        "plan_tasks",
        lambda *args, **kwargs: [
            dataclasses.replace(task, **changes) for task in planned(*args, **kwargs)
        ],
    )
