"""A pair of Llama checkpoints of a given shape, generated fast: for what reads files only.

`--layers 22 --hidden 2048` is a 1.1B pair, `--layers 26 --hidden 3072` about 3B.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from safetensors.torch import save_file

VOCABULARY = 32_000
BLOCK = 128
KINDS = {
    "bfloat16": (torch.bfloat16, torch.bfloat16),
    "float16": (torch.float16, torch.float16),
    "mixed": (torch.float32, torch.bfloat16),
    "fp8": (torch.float8_e4m3fn, torch.float8_e4m3fn),
}
"""Dtypes of initial and aligned; under `fp8` of the matrices in layers, with block scales."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of every benchmark that works on such a pair."""
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where to work; deleted afterwards")


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


def write_pair(folder: Path, layers: int, hidden: int, kind: str = "bfloat16") -> tuple[Path, Path]:
    """Write two Llama checkpoints of one of KINDS, in shards of 1 GB of bfloat16."""
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
    if kind == "fp8":
        blocks = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK]}
        config["quantization_config"] = blocks
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
    for (side, path), dtype in zip(sides.items(), KINDS[kind], strict=True):
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
                tensors |= stored(name, values.reshape(table[name]), dtype)
            save_file(tensors, path / file, metadata={"format": "pt"})
            weight_map |= dict.fromkeys(tensors, file)
        index = {"metadata": {}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    return sides["initial"], sides["aligned"]


def stored(name: str, values: torch.Tensor, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the tensors that stand for a weight: itself, or FP8 codes and their scales."""
    if dtype != torch.float8_e4m3fn:
        return {name: values.to(dtype)}
    if ".layers." not in name or values.dim() == 1:
        return {name: values.to(torch.bfloat16)}
    rows, columns = (size // BLOCK for size in values.shape)
    blocks = values.view(rows, BLOCK, columns, BLOCK)
    scales = blocks.abs().amax(dim=(1, 3)) / torch.finfo(dtype).max
    codes = (blocks / scales[:, None, :, None]).to(dtype)
    return {name: codes.view_as(values), f"{name}_scale_inv": scales}
