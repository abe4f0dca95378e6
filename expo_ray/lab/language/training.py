"""Training from the real language model: DPO of all its weights, and reward models from it.

Weights are kept in float32: a few steps move one by less than bfloat16 can tell.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

from expo_ray.lab.data import Pair
from expo_ray.lab.language.settings import LanguageSettings
from expo_ray.lab.preference_methods import preference_row
from expo_ray.lab.steps import Facts, OnStep
from expo_ray.lab.training import common_arguments, pair_dataset, run_trainer


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
        arguments = DPOConfig(
            **_arguments(settings, settings.dpo_batch_size, scratch, seed="dpo-order"),
            learning_rate=settings.dpo_learning_rate,
            beta=settings.dpo_beta,
            # By the model itself before it is trained: a second one would take as much memory.
            precompute_ref_log_probs=True,
        )
        trainer = DPOTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_list([preference_row(pair) for pair in pairs]),
            processing_class=tokenizer,
        )
        facts = run_trainer(trainer, on_step)
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
        arguments = RewardConfig(
            **_arguments(settings, batch_size, scratch, seed=order),
            learning_rate=settings.reward_learning_rate,
        )
        trainer = RewardTrainer(
            model=model,
            args=arguments,
            train_dataset=pair_dataset(tokenizer, pairs),
            eval_dataset=pair_dataset(tokenizer, check),
            processing_class=tokenizer,
        )
        facts = run_trainer(trainer, on_step)
        accuracy = trainer.evaluate()["eval_accuracy"]
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    return facts | {"num_pairs": len(pairs), "heldout_accuracy": accuracy}


def _arguments(
    settings: LanguageSettings, batch_size: int, scratch: str, *, seed: str
) -> dict[str, Any]:
    at_once = min(settings.pairs_at_once, batch_size)
    return common_arguments(scratch, seed=settings.derive_seed(seed)) | {
        "per_device_train_batch_size": at_once,
        "per_device_eval_batch_size": at_once,
        "gradient_accumulation_steps": -(-batch_size // at_once),
        "max_length": None,
    }
