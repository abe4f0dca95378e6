"""Every knob of the laboratory, with one seed from which all others are derived."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, ConfigDict, Field

# Part of the cache key: raise it whenever the same settings would give other models or prompts.
CODE_VERSION = 1


class LabSettings(BaseModel):
    """Settings of the task's data, the models and their training.

    The defaults were chosen on seeds 0 and 1 only; the default seed is the first number there is.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    seed: int = Field(0, ge=0, description="Drives data, initial weights and order, all derived.")
    num_eval_prompts: int = Field(
        300, ge=1, le=720, description="Held-out prompts; no training prompt is among them."
    )
    vocab_size: int = Field(600, ge=300, le=4096, description="Most tokens of the byte-level BPE.")
    hidden_size: int = Field(128, ge=16, multiple_of=16, description="Width of all models.")
    num_layers: int = Field(2, ge=1, description="Layers of all models.")

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
        text = f"{CODE_VERSION} {self.model_dump_json()}"
        return hashlib.sha256(text.encode()).hexdigest()
