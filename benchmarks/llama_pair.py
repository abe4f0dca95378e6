"""A pair of random Llamas of a given size, made once."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from tests.pico import pico_config, pico_tokenizer

SHAPES = {
    "tiny": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4},
    "0.5b": {"hidden_size": 1536, "intermediate_size": 4096, "num_hidden_layers": 16},
}


def make_pair(folder: Path, size: str) -> tuple[str, str]:
    """Return (initial, aligned); bf16, vocabulary of 32,000, tied head."""
    initial, aligned = folder / size / "initial", folder / size / "aligned"
    if not (aligned / "tokenizer.json").exists():
        heads = SHAPES[size]["hidden_size"] // 64
        config = pico_config(
            vocab_size=32_000,
            num_attention_heads=heads,
            num_key_value_heads=heads // 2,
            max_position_embeddings=2048,
            **SHAPES[size],
        )
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).to(torch.bfloat16)
        for target in (initial, aligned):
            model.save_pretrained(target)
            pico_tokenizer().save_pretrained(target)
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.add_((torch.randn(parameter.shape) * 0.01).to(torch.bfloat16))
    return str(initial), str(aligned)
