"""Tiny random reward models of the two published forms that bring their own code."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import DebertaV2Config, DebertaV2Model, LlamaModel

from tests.pico import pico_config, pico_tokenizer

NUM_OBJECTIVES, WIDTH, NUM_HIDDEN, TEMPERATURE = 5, 16, 2, 3.0
MARKERS = ["<|source|>", "<|candidate1|>", "<|candidate2|>"]


def save_gated(folder: Path, *, leave_out: str = "") -> tuple[Path, dict[str, torch.Tensor]]:
    """Save a multi-objective model with gates; returns its tensors as well."""
    torch.manual_seed(11)
    config = pico_config(tie_word_embeddings=False)
    backbone = LlamaModel(config)
    sizes = [config.hidden_size, *[WIDTH] * NUM_HIDDEN, NUM_OBJECTIVES]
    head = {
        "regression_layer.weight": torch.randn(NUM_OBJECTIVES, config.hidden_size),
        "reward_transform_matrix": torch.randn(NUM_OBJECTIVES, NUM_OBJECTIVES),
        "gating.logit_scale": torch.tensor([1.7]),
    }
    for i in range(NUM_HIDDEN + 1):
        head[f"gating.layers.{i}.weight"] = torch.randn(sizes[i + 1], sizes[i])
        head[f"gating.layers.{i}.bias"] = torch.randn(sizes[i + 1])
    tensors = {**{f"model.{k}": v for k, v in backbone.state_dict().items()}, **head}
    extra = {
        "architectures": ["LlamaForRewardModelWithGating"],
        "auto_map": {"AutoModelForSequenceClassification": "modeling_custom.Custom"},
        "num_objectives": NUM_OBJECTIVES,
        "gating_hidden_dim": WIDTH,
        "gating_n_hidden": NUM_HIDDEN,
        "gating_temperature": TEMPERATURE,
    }
    stored = {name: tensor for name, tensor in tensors.items() if name != leave_out}
    _save(folder, {**config.to_dict(), **extra}, stored)
    (folder / "modeling_custom.py").write_text("raise SystemExit('remote code was run')\n")
    pico_tokenizer().save_pretrained(folder)
    return folder, tensors


def save_pairwise(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Save a DeBERTa pair ranker; returns its tensors as well."""
    from tokenizers.processors import TemplateProcessing

    torch.manual_seed(12)
    tokenizer = pico_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": MARKERS})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    config = DebertaV2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        relative_attention=True,
        position_buckets=32,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        max_position_embeddings=512,
        type_vocab_size=0,
        initializer_range=0.5,
    )
    backbone = DebertaV2Model(config)
    head = nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 1))
    names = {"0": "head_layer.1", "1": "head_layer.4"}
    tensors = {
        **{f"pretrained_model.{k}": v for k, v in backbone.state_dict().items()},
        **{f"{names[k[0]]}{k[1:]}": v.detach() for k, v in head.state_dict().items()},
    }
    ids = tokenizer.convert_tokens_to_ids(MARKERS)
    extra = {
        "architectures": ["DebertaV2PairRM"],
        "n_tasks": 1,
        "drop_out": 0.05,
        **dict(zip(["source_prefix_id", "cand1_prefix_id", "cand2_prefix_id"], ids, strict=True)),
    }
    _save(folder, {**config.to_dict(), **extra}, tensors)
    tokenizer.save_pretrained(folder)
    return folder, tensors


def _save(folder: Path, config: dict[str, object], tensors: dict[str, torch.Tensor]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config, default=str))
    contiguous = {name: tensor.clone().contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
