"""A model that thinks: each character is followed by the one that stands after it in a text."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import torch
from transformers import LlamaForCausalLM

from tests.pico import CHAT_TEMPLATE, pico_config, pico_tokenizer

PREFILLED = CHAT_TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|><think>\n{% endif %}")
"""As of DeepSeek-R1 and QwQ: the response begins inside the thought."""
assert PREFILLED != CHAT_TEMPLATE
_HIDDEN = 320
"""A dimension for each token at least, in heads that vLLM computes on a CPU."""


def save_speaker(folder: Path, text: str, *, template: str = PREFILLED) -> Path:
    """Save a model that writes a text after a line break, and then ends; none of it is learned.

    Args:
        folder: Where to.
        text: Every character at most once; the last one may be `text[0]`, for a text without end.
        template: Its chat template, which ends in a line break.
    """
    tokenizer = pico_tokenizer()
    tokenizer.chat_template = template
    shape = {"hidden_size": _HIDDEN, "num_attention_heads": 10, "tie_word_embeddings": False}
    model = LlamaForCausalLM(pico_config(**shape))
    ids = tokenizer("\n" + text, add_special_tokens=False).input_ids
    follows = dict(pairwise([*ids, tokenizer.eos_token_id]))
    assert len(follows) in (len(ids), len(ids) - 1), "a character has two successors"
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(torch.eye(262, _HIDDEN))
        for layer in model.model.layers:  # what a token is passes them unchanged
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.zero_()
        for before, after in pairwise([*ids, tokenizer.eos_token_id]):
            if not model.lm_head.weight[:, before].any():
                model.lm_head.weight[after, before] = 10.0
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
