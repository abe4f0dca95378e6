"""Every knob of the laboratory of a real language model, with one seed from which all derive."""

from __future__ import annotations

import hashlib
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from expo_ray.flags import Flag
from expo_ray.lab.experiments.kind import LAB_PANEL
from expo_ray.serving.sampling import SamplingParams

# Part of the cache key: raise it whenever the same settings would give other models or prompts.
CODE_VERSION = 3
Share = Annotated[float, Field(gt=0, le=1)]


class LanguageSettings(BaseModel):
    """Settings of data and training; the amounts are those of two CPU cores."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    seed: Annotated[int, Flag(panel=LAB_PANEL)] = Field(
        0, ge=0, description="Drives prompts, answers and order, all derived."
    )
    fractions: Annotated[
        tuple[Share, ...], Flag(name="--fraction", panel=LAB_PANEL, metavar="X", repeats=True)
    ] = Field(
        (0.05, 0.1, 0.2, 0.4, 1.0),
        min_length=1,
        description="Share of the preference data that an aligned model is trained on. By default "
        "five: 0.05, 0.1, 0.2, 0.4 and 1; a rerun with others adds them.",
    )
    engine: Annotated[str, Flag(panel=LAB_PANEL)] = Field(
        "auto",
        description="What samples the answers: vllm or transformers; auto takes vLLM where it is "
        "installed.",
    )
    num_preference_prompts: Annotated[int, Flag(panel=LAB_PANEL)] = Field(
        480, ge=1, description="Prompts of all preference data there is; each gives a pair or none."
    )
    num_reward_prompts: Annotated[int, Flag(panel=LAB_PANEL)] = Field(
        320, ge=1, description="Prompts of the pairs of each of the two reward models."
    )
    num_eval_prompts: Annotated[int, Flag(panel=LAB_PANEL)] = Field(
        300, ge=1, description="Prompts that no model is trained on, of each of the two files."
    )
    num_samples: int = Field(4, ge=2, description="Answers per prompt, of which a pair is made.")
    max_tokens: int = Field(80, ge=1, description="Longest answer.")

    dpo_batch_size: int = Field(8, ge=1, description="Pairs per optimizer step.")
    dpo_learning_rate: float = Field(2e-5, gt=0, description="Peak; cosine, 10% warm-up.")
    dpo_beta: float = Field(0.1, gt=0, description="DPO's beta.")
    reward_batch_size: int = Field(8, ge=1, description="Pairs per optimizer step.")
    reward_learning_rate: float = Field(2e-4, gt=0, description="Peak; cosine, 10% warm-up.")
    pairs_at_once: int = Field(
        8, ge=1, description="Pairs that are computed together; a matter of memory."
    )

    @property
    def sampling(self) -> SamplingParams:
        """How answers for pairs are sampled: wide, so that some keep to what is asked."""
        return SamplingParams(
            temperature=1.0,
            top_p=0.95,
            top_k=0,
            max_tokens=self.max_tokens,
            num_samples=self.num_samples,
            seed=self.derive_seed("answers"),
        )

    def num_prompts(self, fraction: float) -> int:
        """Return how many prompts a share of the preference data has."""
        return max(1, round(fraction * self.num_preference_prompts))

    def derive_seed(self, label: str) -> int:
        """Return the seed of one purpose: 31 bits of sha256 over the seed and its label."""
        digest = hashlib.sha256(f"{self.seed}/{label}".encode()).digest()
        return int.from_bytes(digest[:4], "big") >> 1

    def digest(self) -> str:
        """Return the cache key: sha256 over the code version and all but the shares."""
        text = f"{CODE_VERSION} {self.model_dump_json(exclude={'fractions'})}"
        return hashlib.sha256(text.encode()).hexdigest()
