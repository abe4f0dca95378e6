"""Checkpoints of headers alone, with the names and shapes of published models of any size."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from expo_ray.checkpoints.formats.header import build_header, tensor_bytes

FILE_BYTES = 10 * 10**9


class Layout(NamedTuple):
    """The numbers of a published config.json that decide names and shapes."""

    model_type: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocabulary: int
    num_parameters: float
    """As its makers publish it, in billions."""

    def tensors(self) -> dict[str, tuple[int, ...]]:
        queries, keys = self.hidden, self.hidden // self.heads * self.kv_heads
        if self.model_type == "internlm2":
            parts = {
                "attention.wqkv": (queries + 2 * keys, self.hidden),
                "attention.wo": (self.hidden, queries),
                "feed_forward.w1": (self.inner, self.hidden),
                "feed_forward.w3": (self.inner, self.hidden),
                "feed_forward.w2": (self.hidden, self.inner),
                "attention_norm": (self.hidden,),
                "ffn_norm": (self.hidden,),
            }
            ends = ("model.tok_embeddings", "output")
        else:
            parts = {
                "self_attn.q_proj": (queries, self.hidden),
                "self_attn.k_proj": (keys, self.hidden),
                "self_attn.v_proj": (keys, self.hidden),
                "self_attn.o_proj": (self.hidden, queries),
                "mlp.gate_proj": (self.inner, self.hidden),
                "mlp.up_proj": (self.inner, self.hidden),
                "mlp.down_proj": (self.hidden, self.inner),
                "input_layernorm": (self.hidden,),
                "post_attention_layernorm": (self.hidden,),
            }
            ends = ("model.embed_tokens", "lm_head")
        found = {f"{end}.weight": (self.vocabulary, self.hidden) for end in ends}
        for i in range(self.layers):
            found |= {f"model.layers.{i}.{name}.weight": shape for name, shape in parts.items()}
        return found | {"model.norm.weight": (self.hidden,)}

    def config(self) -> dict[str, Any]:
        known = {"internlm2": "InternLM2", "llama": "Llama", "mistral": "Mistral"}
        return {
            "architectures": [f"{known[self.model_type]}ForCausalLM"],
            "model_type": self.model_type,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
        }


MISTRAL_7B = Layout("mistral", 4096, 14336, 32, 32, 8, 32_000, 7.24)
LAYOUTS = {
    "internlm2-1.8b": Layout("internlm2", 2048, 8192, 24, 16, 8, 92_544, 1.89),
    "internlm2-7b": Layout("internlm2", 4096, 14336, 32, 32, 8, 92_544, 7.74),
    "internlm2-20b": Layout("internlm2", 6144, 16384, 48, 48, 8, 92_544, 19.86),
    "llama-3-8b-iterative-dpo": Layout("llama", 4096, 14336, 32, 32, 8, 128_256, 8.03),
    "tulu-2-7b": Layout("llama", 4096, 11008, 32, 32, 32, 32_000, 6.74),
    "tulu-2-13b": Layout("llama", 5120, 13824, 40, 40, 40, 32_000, 13.02),
    "tulu-2-70b": Layout("llama", 8192, 28672, 80, 64, 8, 32_000, 68.98),
}


def write_stand_in(folder: Path, layout: Layout) -> Path:
    """Write a checkpoint of headers alone: the weights are holes that take no room on a disk."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(layout.config()))
    groups: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in layout.tensors().items():
        num_bytes = tensor_bytes("BF16", shape)
        if size + num_bytes > FILE_BYTES:
            groups.append({})
            size = 0
        groups[-1][name] = shape
        size += num_bytes
    weight_map = {}
    for number, group in enumerate(groups, start=1):
        file = f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        header = build_header([(name, "BF16", shape) for name, shape in group.items()])
        (folder / file).write_bytes(header)
        data_bytes = sum(tensor_bytes("BF16", shape) for shape in group.values())
        os.truncate(folder / file, len(header) + data_bytes)
        weight_map |= dict.fromkeys(group, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder
