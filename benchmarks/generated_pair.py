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


def write_pair(folder: Path, layers: int, hidden: int) -> tuple[Path, Path]:
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
