"""Training from the real language model: DPO of all its weights, and reward models from it.

Weights are kept in float32: a few steps move one by less than bfloat16 can tell.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from expo_ray.lab.data import Pair
from expo_ray.lab.language.settings import LanguageSettings
from expo_ray.lab.preference_methods import dpo_trainer
from expo_ray.lab.steps import Facts, OnStep
from expo_ray.lab.training import common_arguments, fit_reward_model, run_trainer
from expo_ray.serving.engines.devices import has_amx


def train_aligned(
    settings: LanguageSettings,
    initial: Path,
    pairs: Sequence[Pair],
    output: Path,
    on_step: OnStep,
) -> Facts:
    """Train all weights by DPO.

    Args:
        settings: Of the training.
        initial: Where it starts.
        pairs: The preferences.
        output: Where the checkpoint is written.
        on_step: Told of every optimizer step.

    Returns:
        Facts of the training.
    """
    tokenizer = AutoTokenizer.from_pretrained(initial)
    model = AutoModelForCausalLM.from_pretrained(initial, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as scratch:
        batch_size = settings.dpo_batch_size
        arguments = _arguments(settings, pairs, batch_size, scratch, seed="dpo-order") | {
            "learning_rate": settings.dpo_learning_rate,
            "beta": settings.dpo_beta,
            # By the model itself before it is trained: a second one would take as much memory.
            "precompute_ref_log_probs": True,
        }
        facts = run_trainer(dpo_trainer(model, tokenizer, pairs, arguments), on_step)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return facts | {"num_pairs": len(pairs)}


def train_reward_model(
    settings: LanguageSettings,
    initial: Path,
    pairs: Sequence[Pair],
    check: Sequence[Pair],
    output: Path,
    on_step: OnStep,
) -> Facts:
    """Train a reward model: the language model with a head for one number.

    Args:
        settings: Of the training.
        initial: Where all but the head starts.
        pairs: The preferences.
        check: Others, to measure its accuracy.
        output: Where the checkpoint is written; its name derives the seeds.
        on_step: Told of every optimizer step.

    Returns:
        Facts of the training, with the accuracy on `check`.
    """
    tokenizer = AutoTokenizer.from_pretrained(initial)
    torch.manual_seed(settings.derive_seed(f"{output.name}-head"))
    model = AutoModelForSequenceClassification.from_pretrained(
        initial, num_labels=1, dtype=torch.float32
    )
    with tempfile.TemporaryDirectory() as scratch:
        batch_size, order = settings.reward_batch_size, f"{output.name}-order"
        arguments = _arguments(settings, pairs, batch_size, scratch, seed=order) | {
            "learning_rate": settings.reward_learning_rate,
            # 0.6 of the time where the processor has tiles for it; the weights stay float32.
            "bf16": has_amx(),
        }
        facts = fit_reward_model(model, tokenizer, pairs, check, arguments, on_step)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return facts | {"num_pairs": len(pairs)}


def _arguments(
    settings: LanguageSettings, pairs: Sequence[Pair], batch_size: int, scratch: str, *, seed: str
) -> dict[str, Any]:
    at_once = min(settings.pairs_at_once, batch_size)
    num_steps = -(-len(pairs) // batch_size)
    return common_arguments(scratch, seed=settings.derive_seed(seed)) | {
        # The first step of a warm-up moves nothing: of a few steps none is given away.
        "warmup_steps": num_steps // 10,
        "per_device_train_batch_size": at_once,
        "per_device_eval_batch_size": at_once,
        "gradient_accumulation_steps": -(-batch_size // at_once),
        "max_length": None,
    }
