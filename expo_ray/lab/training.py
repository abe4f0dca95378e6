"""Training the laboratory's models with TRL: SFT, DPO and reward models, one function each.

The functions are plain and need no Ray; `prepare.py` runs each of them in its own Ray task. They
read and write ordinary checkpoints, and return the facts that the report shows.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
)
from trl import RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from expo_ray.lab.data import (
    Pair,
    Purpose,
    draw_example,
    draw_pair,
    eval_prompts,
    random_source,
    requests_for,
)
from expo_ray.lab.models import (
    new_language_model,
    new_reward_model,
    save_checkpoint,
    train_tokenizer,
)
from expo_ray.lab.on_policy import sample_answers
from expo_ray.lab.preference_methods import METHODS
from expo_ray.lab.settings import LabSettings
from expo_ray.lab.steps import Facts, OnStep
from expo_ray.tables import Message

_NUM_CHECK_PAIRS = 1000
_TOKENIZER_EXAMPLES = 3000


def lab_tokenizer(settings: LabSettings) -> PreTrainedTokenizerFast:
    """Return the tokenizer that all models of these settings share."""
    rng = random_source(settings, "tokenizer")
    requests = requests_for(settings, "initial")
    examples = (draw_example(settings, rng, requests) for _ in range(_TOKENIZER_EXAMPLES))
    return train_tokenizer((t for pair in examples for t in pair), vocab_size=settings.vocab_size)


def train_initial(
    settings: LabSettings,
    output: Path,
    *,
    on_step: OnStep,
    parent: Path | None = None,
    variant: str = "",
    as_text: bool = False,
) -> Facts:
    """Train the initial model by SFT on answers of mixed quality.

    Args:
        settings: Settings of the laboratory.
        output: Where the checkpoint is written.
        on_step: Told of every optimizer step.
        parent: Where training starts; None is from scratch.
        variant: A name that draws weights, answers and order of their own.
        as_text: Learn prompts and answers as running text, without turns or an end, as a base
            model does.

    Returns:
        Training facts with the hidden truth of the model.
    """
    tokenizer = lab_tokenizer(settings)
    rng = random_source(settings, f"sft-data{variant}")
    requests = requests_for(settings, "initial")
    examples = [draw_example(settings, rng, requests) for _ in range(settings.num_sft_examples)]
    rows = _text_rows(tokenizer, examples) if as_text else _answer_rows(tokenizer, examples)
    if parent is None:
        seed = settings.derive_seed(f"sft-init{variant}")
        model = new_language_model(settings, tokenizer, seed=seed)
    else:
        model = AutoModelForCausalLM.from_pretrained(parent, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as scratch:
        arguments = SFTConfig(
            **common_arguments(scratch, seed=settings.derive_seed(f"sft-order{variant}")),
            learning_rate=settings.sft_learning_rate,
            per_device_train_batch_size=settings.sft_batch_size,
            max_length=None,
        )
        trainer = SFTTrainer(
            model=model,
            args=arguments,
            train_dataset=Dataset.from_dict(rows),
            processing_class=tokenizer,
        )
        facts = run_trainer(trainer, on_step)
    save_checkpoint(model, tokenizer, output)
    return facts | {"num_examples": len(examples), **measure_truth(settings, output)}


def _answer_rows(
    tokenizer: PreTrainedTokenizerFast, examples: Sequence[tuple[str, str]]
) -> dict[str, list[list[int]]]:
    """Return chats with the loss on the answer only."""
    prompt_ids = _encode(tokenizer, [p for p, _ in examples])
    chat_ids = _encode(tokenizer, [p for p, _ in examples], [a for _, a in examples])
    labels = [[-100] * len(p) + c[len(p) :] for p, c in zip(prompt_ids, chat_ids, strict=True)]
    return {"input_ids": chat_ids, "labels": labels}


def _text_rows(
    tokenizer: PreTrainedTokenizerFast, examples: Sequence[tuple[str, str]]
) -> dict[str, list[list[int]]]:
    ids = tokenizer([f"{prompt} {answer}" for prompt, answer in examples])["input_ids"]
    return {"input_ids": ids, "labels": ids}


def train_aligned(
    settings: LabSettings,
    initial: Path,
    output: Path,
    *,
    on_step: OnStep,
    options: Mapping[str, Any] | None = None,
    method: str = "dpo",
    pairs: Sequence[Pair] | None = None,
    variant: str = "",
) -> Facts:
    """Train the aligned model on a share of the preference data, from the initial one.

    Args:
        settings: Settings of the laboratory.
        initial: Where training starts.
        output: Where the checkpoint is written.
        on_step: Told of every optimizer step.
        options: Arguments of the trainer in the place of the laboratory's own: another schedule, or
            checkpoints along the way.
        method: A name of `preference_methods.METHODS`.
        pairs: What to learn from in place of the share that the settings draw.
        variant: A name that draws pairs and order of their own.

    Returns:
        Training facts with the hidden truth of the model.
    """
    tokenizer = AutoTokenizer.from_pretrained(initial)
    if pairs is None:
        pairs = draw_preferences(settings, settings.num_dpo_pairs, variant=variant)
    model = AutoModelForCausalLM.from_pretrained(initial, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as scratch:
        common = common_arguments(scratch, seed=settings.derive_seed(f"dpo-order{variant}"))
        common |= {"learning_rate": settings.dpo_learning_rate, "max_length": None}
        trainer = METHODS[method](settings, model, tokenizer, pairs, {**common, **(options or {})})
        facts = run_trainer(trainer, on_step)
    save_checkpoint(model, tokenizer, output)
    # Measured on a model loaded anew: the trained object carries a forward bound to itself.
    return facts | _pair_facts(pairs) | measure_truth(settings, output)


def draw_preferences(settings: LabSettings, num_pairs: int, *, variant: str = "") -> list[Pair]:
    """Draw the pairs that alignment learns from; a name draws others of the same kind."""
    rng = random_source(settings, f"aligned-pairs{variant}")
    requests = requests_for(settings, "aligned")
    return [draw_pair(settings, rng, requests) for _ in range(num_pairs)]


def train_reward_model(
    settings: LabSettings,
    purpose: Purpose,
    output: Path,
    *,
    on_step: OnStep,
    on_policy_pairs: Sequence[Pair] = (),
) -> Facts:
    """Train a reward model from scratch, on prompts that no other model is trained on.

    Args:
        settings: Settings of the laboratory.
        purpose: `reward_model` or `guard_reward_model`: whose prompts and seeds.
        output: Where the checkpoint is written.
        on_step: Told of every optimizer step.
        on_policy_pairs: Further pairs; so many fewer are drawn.

    Returns:
        Training facts with the accuracy on fresh pairs of held-out evaluation prompts.
    """
    tokenizer = lab_tokenizer(settings)
    is_guard = purpose == "guard_reward_model"
    damaged_share = settings.guard_damaged_share if is_guard else settings.damaged_share
    shares = {"damaged_share": damaged_share, "near_share": settings.near_share}
    num_pairs = settings.num_guard_pairs if is_guard else settings.num_reward_pairs
    pairs = _draw_pairs(settings, purpose, num_pairs - len(on_policy_pairs), **shares)
    pairs += on_policy_pairs
    check = _draw_pairs(settings, "evaluation", _NUM_CHECK_PAIRS)
    model = new_reward_model(
        settings,
        tokenizer,
        seed=settings.derive_seed(f"{purpose}-init"),
        hidden_size=settings.guard_hidden_size if is_guard else None,
    )
    with tempfile.TemporaryDirectory() as scratch:
        order = settings.derive_seed(f"{purpose}-order")
        arguments = common_arguments(scratch, seed=order) | {
            "learning_rate": settings.reward_learning_rate,
            "per_device_train_batch_size": settings.reward_batch_size,
            "max_length": None,
        }
        facts = fit_reward_model(model, tokenizer, pairs, check, arguments, on_step)
    save_checkpoint(model, tokenizer, output)
    return facts | _pair_facts(pairs)


def fit_reward_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[Pair],
    check: Sequence[Pair],
    arguments: Mapping[str, Any],
    on_step: OnStep,
) -> Facts:
    """Train a reward model by TRL.

    Args:
        model: A classifier with one label.
        tokenizer: Its tokenizer.
        pairs: The preferences.
        check: Others, to measure its accuracy.
        arguments: Of `RewardConfig`.
        on_step: Told of every optimizer step.

    Returns:
        Facts of the training, with the accuracy on `check` (`heldout_accuracy`).
    """
    trainer = RewardTrainer(
        model=model,
        args=RewardConfig(**arguments),
        train_dataset=_pair_dataset(tokenizer, pairs),
        eval_dataset=_pair_dataset(tokenizer, check),
        processing_class=tokenizer,
    )
    facts = run_trainer(trainer, on_step)
    return facts | {"heldout_accuracy": trainer.evaluate()["eval_accuracy"]}


def measure_truth(settings: LabSettings, checkpoint: Path) -> Facts:
    """Return the mean hidden truth of one sampled answer per evaluation prompt."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    chats: list[list[Message]] = [
        [{"role": "user", "content": row["prompt"]}] for row in eval_prompts(settings)
    ]
    answers = sample_answers(settings, model, tokenizer, chats, purpose="truth-sampling")
    truth = settings.lab_task.truth
    scores = [truth(chat, answer) for chat, answer in zip(chats, answers, strict=True)]
    return {"mean_truth": float(np.mean(scores)), "num_truth_prompts": len(scores)}


class _StepReporter(TrainerCallback):  # type: ignore[misc]
    def __init__(self, on_step: OnStep) -> None:
        self.on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.on_step(state.global_step, state.max_steps)


def run_trainer(trainer: Trainer, on_step: OnStep) -> Facts:
    """Train, and return how long it took and how it went."""
    trainer.add_callback(_StepReporter(on_step))
    start = time.perf_counter()
    result = trainer.train()
    return {
        "num_steps": result.global_step,
        "mean_loss": result.training_loss,
        "train_seconds": time.perf_counter() - start,
    }


def common_arguments(scratch: str, *, seed: int) -> dict[str, Any]:
    """Return what all trainings have in common, for TRL's configurations."""
    return {
        "output_dir": scratch,
        "num_train_epochs": 1,
        "per_device_eval_batch_size": 100,
        "lr_scheduler_type": "cosine",
        "warmup_steps": 0.1,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "seed": seed,
        # float32 on the CPU: see models.save_checkpoint.
        "bf16": False,
        "use_cpu": True,
        "gradient_checkpointing": False,
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def _draw_pairs(
    settings: LabSettings, purpose: Purpose, num_pairs: int, **shares: float
) -> list[Pair]:
    rng = random_source(settings, f"{purpose}-pairs")
    requests = requests_for(settings, purpose)
    return [draw_pair(settings, rng, requests, **shares) for _ in range(num_pairs)]


def _pair_facts(pairs: Sequence[Pair]) -> Facts:
    agreement = sum(pair.agrees for pair in pairs) / len(pairs)
    return {"num_pairs": len(pairs), "label_agreement": agreement}


def _pair_dataset(tokenizer: PreTrainedTokenizerFast, pairs: Sequence[Pair]) -> Dataset:
    prompts = [pair.prompt for pair in pairs]
    chosen_ids = _encode(tokenizer, prompts, [pair.chosen for pair in pairs])
    rejected_ids = _encode(tokenizer, prompts, [pair.rejected for pair in pairs])
    return Dataset.from_dict({"chosen_ids": chosen_ids, "rejected_ids": rejected_ids})


def _encode(
    tokenizer: PreTrainedTokenizerFast, prompts: Sequence[str], answers: Sequence[str] | None = None
) -> list[list[int]]:
    """Tokenize many chats at once; TRL's own mapping, one example at a time, takes far longer."""
    chats = [[{"role": "user", "content": prompt}] for prompt in prompts]
    if answers is not None:
        for chat, answer in zip(chats, answers, strict=True):
            chat.append({"role": "assistant", "content": answer})
    encoded = tokenizer.apply_chat_template(
        chats, add_generation_prompt=answers is None, return_dict=True
    )
    ids: list[list[int]] = encoded["input_ids"]
    return ids
