"""Pico checkpoints: real transformers models, small enough to make and load in milliseconds."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.llama import LlamaForSequenceClassification

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL_TOKENS = ["<pad>", "<s>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]


def pico_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer of 262 tokens with a chat template (BOS first, EOS after a turn)."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(SPECIAL_TOKENS + alphabet)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=CHAT_TEMPLATE,
    )


def pico_config(**overrides: object) -> LlamaConfig:
    settings: dict[str, object] = {
        "vocab_size": 262,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }
    return LlamaConfig(**{**settings, **overrides})


def save_model(
    model: PreTrainedModel, folder: Path, *, max_shard_size: str = "40KB", tokenizer: bool = True
) -> Path:
    """Save as an ordinary checkpoint; the default shard size gives several shards."""
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    if tokenizer:
        pico_tokenizer().save_pretrained(folder)
    return folder


def save_pair(
    folder: Path,
    *,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
    scale: float = 0.01,
    **overrides: object,
) -> tuple[Path, Path]:
    """Save an (initial, aligned) pair: aligned is initial plus noise of the given scale."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(pico_config(**overrides)).to(dtype)
    initial = save_model(model, folder / "initial")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_((torch.randn(parameter.shape) * scale).to(dtype))
    # Another shard size on this side: the layouts of a real pair rarely agree.
    aligned = save_model(model, folder / "aligned", max_shard_size="25KB")
    return initial, aligned


def save_reward_model(folder: Path, *, seed: int = 7, **overrides: object) -> Path:
    """Save a one-label sequence classifier in float32."""
    torch.manual_seed(seed)
    config = pico_config(num_labels=1, tie_word_embeddings=False, **overrides)
    return save_model(LlamaForSequenceClassification(config), folder)
