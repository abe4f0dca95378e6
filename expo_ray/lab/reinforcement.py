"""Training the aligned model with GRPO on the check of its own answers: TRL, without a server."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from pydantic import BaseModel, ConfigDict, Field
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from expo_ray.errors import EvaluationError
from expo_ray.lab.data import draw_prompts, random_source, requests_for
from expo_ray.lab.models import save_checkpoint
from expo_ray.lab.settings import LabSettings
from expo_ray.lab.steps import Facts, OnStep
from expo_ray.lab.training import common_arguments, measure_truth, run_trainer
from expo_ray.rewards.checks.reward_model import CheckRewardModel
from expo_ray.tables import Message

Reward = Callable[..., list[float]]


class GrpoSettings(BaseModel):
    """How long, and from how many answers."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    num_steps: int = Field(100, ge=1, description="Optimizer steps.")
    batch_size: int = Field(8, ge=1, description="Prompts per step.")
    num_samples: int = Field(8, ge=2, description="Answers per prompt, compared with each other.")
    learning_rate: float = Field(3e-4, gt=0, description="Peak, cosine with 10% warm-up.")


def train_reinforced(
    settings: LabSettings,
    initial: Path,
    output: Path,
    *,
    on_step: OnStep,
    options: Mapping[str, Any] | None = None,
    grpo: GrpoSettings | None = None,
) -> Facts:
    """Train the aligned model with GRPO, rewarded by the task's check alone.

    Args:
        settings: Of what is asked.
        initial: Where training starts.
        output: Where the checkpoint is written.
        on_step: Told of every optimizer step.
        options: Arguments of the trainer in the place of the laboratory's own: another schedule, or
            checkpoints along the way.
        grpo: How long; the defaults where None.

    Returns:
        Training facts with the hidden truth of the model.

    Raises:
        EvaluationError: The check cannot say whether an answer is right.
    """
    grpo = grpo or GrpoSettings()
    tokenizer = AutoTokenizer.from_pretrained(initial)
    model = AutoModelForCausalLM.from_pretrained(initial, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as scratch, checked_reward(settings) as reward:
        common = common_arguments(scratch, seed=settings.derive_seed("grpo-order"))
        own = {
            "learning_rate": grpo.learning_rate,
            "per_device_train_batch_size": grpo.batch_size * grpo.num_samples,
            "num_generations": grpo.num_samples,
            "max_completion_length": settings.max_new_tokens,
        }
        trainer = GRPOTrainer(
            model=model,
            args=GRPOConfig(**{**common, **own, **(options or {})}),
            train_dataset=Dataset.from_list(_prompts(settings, grpo)),
            processing_class=tokenizer,
            reward_funcs=reward,
        )
        facts = run_trainer(trainer, on_step)
    save_checkpoint(model, tokenizer, output)
    num_prompts = grpo.num_steps * grpo.batch_size
    return facts | {"num_prompts": num_prompts} | measure_truth(settings, output)


def _prompts(settings: LabSettings, grpo: GrpoSettings) -> list[dict[str, Any]]:
    """Return a chat and what it is checked against for every prompt of every step."""
    rng = random_source(settings, "grpo-data")
    requests = requests_for(settings, "aligned")
    places = rng.integers(len(requests), size=grpo.num_steps * grpo.batch_size)
    rows = draw_prompts(rng, settings.lab_task, [requests[i] for i in places])
    return [{**row, "prompt": [{"role": "user", "content": row["prompt"]}]} for row in rows]


@contextmanager
def checked_reward(settings: LabSettings) -> Iterator[Reward]:
    """Open the task's check, in the form that the trainer asks for.

    Raises:
        EvaluationError: During the training, where the check cannot say.
    """
    kind = settings.lab_task.check
    check = CheckRewardModel(kind.form, kind, kind.parse(None))

    def reward(
        prompts: Sequence[Sequence[Message]],
        completions: Sequence[Sequence[Message]],
        answer: Sequence[str] | None = None,
        **_: Any,
    ) -> list[float]:
        chats = [[*chat, *said] for chat, said in zip(prompts, completions, strict=True)]
        scores = check.score(chats, answer)
        if broken := next((one.error for one in scores if one.error is not None), None):
            raise EvaluationError("the check of a training is broken", where=kind.form, got=broken)
        return [one.reward for one in scores if one.reward is not None]

    try:
        yield reward
    finally:
        check.close()
