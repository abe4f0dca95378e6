"""Every knob of the laboratory, with one seed from which all others are derived."""

from __future__ import annotations

import hashlib
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from expo_ray.lab.tasks.interface import LabTask
from expo_ray.lab.tasks.registry import TASKS

# Part of the cache key: raise it whenever the same settings would give other models or prompts.
CODE_VERSION = 1


class LabSettings(BaseModel):
    """Settings of the task's data, the models and their training.

    The defaults were chosen on seeds 0 and 1 only; the default seed is the first number there is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    task: Literal["lists", "sums"] = Field(
        "lists",
        description="What is asked: `lists` of things, politely, or `sums` of small numbers, whose "
        "answers can be checked (`check:number`).",
    )
    seed: int = Field(0, ge=0, description="Drives data, initial weights and order, all derived.")
    num_eval_prompts: int = Field(
        300,
        ge=1,
        description="Held-out prompts; no training prompt is among them. At most half of what the "
        "task has: 720 of `lists`, 2,520 of `sums`.",
    )
    vocab_size: int = Field(600, ge=300, le=4096, description="Most tokens of the byte-level BPE.")
    hidden_size: int = Field(128, ge=16, multiple_of=16, description="Width of all models.")
    num_layers: int = Field(2, ge=1, description="Layers of all models.")
    initializer_range: float = Field(
        0.02, gt=0, description="Spread of untrained weights. `sums` are learned faster at 0.08."
    )

    num_sft_examples: int = Field(12000, ge=1, description="Answers the initial model learns from.")
    sft_batch_size: int = Field(16, ge=1, description="Examples per optimizer step.")
    sft_learning_rate: float = Field(3e-3, gt=0, description="Peak, cosine with 10% warm-up.")

    num_preference_pairs: int = Field(4000, ge=1, description="All preference data there is.")
    preference_fraction: float = Field(
        0.1, gt=0, le=1, description="Share of it that the aligned model is trained on."
    )
    dpo_batch_size: int = Field(32, ge=1, description="Pairs per optimizer step.")
    dpo_learning_rate: float = Field(1e-4, gt=0, description="Peak, cosine with 10% warm-up.")
    dpo_beta: float = Field(0.1, gt=0, description="DPO's beta.")
    truth_weight: float = Field(
        1.0,
        gt=0,
        description="What a point of the truth is worth to the labeller of preferences. Lists have "
        "7 points, manners among them; of sums a right one has 1, beside 1 for each polite phrase.",
    )

    num_reward_pairs: int = Field(6000, ge=1, description="Pairs per reward model.")
    reward_batch_size: int = Field(16, ge=1, description="Pairs per optimizer step.")
    reward_learning_rate: float = Field(1e-3, gt=0, description="Peak, cosine with 10% warm-up.")
    damaged_share: float = Field(
        0.25, ge=0, le=1, description="Share of the reward model's pairs with one damaged answer."
    )
    near_share: float = Field(
        0.25, ge=0, le=1, description="Share of reward pairs that differ in one piece only."
    )
    guard_reward_model: bool = Field(
        True, description="Also train a second reward model: other prompts, other seed."
    )
    num_guard_pairs: int = Field(6000, ge=1, description="Pairs of the second reward model.")
    guard_damaged_share: float = Field(
        0.25, ge=0, le=1, description="Its share of pairs with one damaged answer."
    )
    guard_hidden_size: int | None = Field(
        None, ge=16, multiple_of=16, description="Its width where not that of all models."
    )
    guard_on_policy_share: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Share of its pairs whose answers the pair itself wrote, extrapolated: costs "
        "about a minute, and shows it the text that it will have to judge.",
    )

    max_new_tokens: int = Field(
        64, ge=1, description="Length limit where the laboratory itself samples answers."
    )

    @model_validator(mode="after")
    def _fits_the_task(self) -> Self:
        num_requests = len(self.lab_task.requests())
        if 2 * self.num_eval_prompts > num_requests:
            raise ValueError(
                f"num_eval_prompts {self.num_eval_prompts} is more than half of the {num_requests} "
                f"requests that the task {self.task} has"
            )
        return self

    @property
    def lab_task(self) -> LabTask:
        """What is asked."""
        return TASKS[self.task]

    @property
    def unused(self) -> set[str]:
        """Keys that came later, where they change nothing.

        Digests leave them out, so that what was made before stays valid.
        """
        standing = {"task": "lists", "truth_weight": 1.0, "initializer_range": 0.02}
        return {name for name, value in standing.items() if getattr(self, name) == value}

    @property
    def num_dpo_pairs(self) -> int:
        """Pairs the aligned model is trained on."""
        return max(1, round(self.preference_fraction * self.num_preference_pairs))

    @property
    def num_on_policy_pairs(self) -> int:
        """Pairs of the second reward model whose answers the pair itself wrote."""
        return round(self.guard_on_policy_share * self.num_guard_pairs)

    def derive_seed(self, label: str) -> int:
        """Return the seed of one purpose: 31 bits of sha256 over the seed and its label."""
        digest = hashlib.sha256(f"{self.seed}/{label}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1

    def digest(self) -> str:
        """Return the cache key: sha256 over the settings and the code version."""
        text = f"{CODE_VERSION} {self.model_dump_json(exclude=self.unused)}"
        return hashlib.sha256(text.encode()).hexdigest()
