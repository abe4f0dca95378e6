"""The laboratory's tokenizer and untrained models: ordinary transformers objects, very small."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from expo_ray.lab.settings import LabSettings

PAD, BOS, EOS = "<pad>", "<s>", "</s>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
# One BOS in front, EOS ends an answer and nothing else.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# Small enough that every model has three shards or more, as real ones do.
MAX_SHARD_SIZE = "500KB"
MAX_POSITIONS = 512


def train_tokenizer(texts: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the task's texts.

    Args:
        texts: Prompts and answers; the same texts give the same tokenizer.
        vocab_size: Tokens in all, 256 bytes and the special tokens included.

    Returns:
        A tokenizer with pad, BOS, EOS and a chat template. It adds no special token by itself:
        the chat template does, once.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS, *ROLES],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side="left",
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def new_language_model(
    settings: LabSettings, tokenizer: PreTrainedTokenizerFast, *, seed: int
) -> LlamaForCausalLM:
    """Return an untrained model with tied embeddings, in float32."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(_config(settings, tokenizer, tie_word_embeddings=True))


def new_reward_model(
    settings: LabSettings,
    tokenizer: PreTrainedTokenizerFast,
    *,
    seed: int,
    hidden_size: int | None = None,
) -> LlamaForSequenceClassification:
    """Return an untrained classifier with one label, in float32; the width is the models' own."""
    if hidden_size is not None:
        settings = settings.model_copy(update={"hidden_size": hidden_size})
    torch.manual_seed(seed)
    return LlamaForSequenceClassification(_config(settings, tokenizer, num_labels=1))


def save_checkpoint(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path
) -> None:
    """Save model and tokenizer the ordinary way, in several shards.

    In float32 on purpose: alignment moves a weight by about a hundredth of its size, bfloat16
    keeps eight bits of it, so rounding would lose much of the very delta that is extrapolated.
    """
    model.save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
    tokenizer.save_pretrained(folder)


def _config(
    settings: LabSettings, tokenizer: PreTrainedTokenizerFast, **overrides: object
) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=2 * settings.hidden_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        initializer_range=settings.initializer_range,
        max_position_embeddings=MAX_POSITIONS,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **overrides,
    )
