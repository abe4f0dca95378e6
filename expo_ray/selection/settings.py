"""What one may turn when alpha is chosen, each with its default and the reason for it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SelectionSettings(BaseModel):
    """Rules by which alpha is chosen; part of a recipe, so unknown keys are refused."""

    model_config = ConfigDict(
        strict=True, frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True
    )

    confidence: float = Field(default=0.95, ge=0.5, lt=1)
    """Two-sided confidence of every interval; a p-value must not exceed 1 minus this."""

    num_resamples: int = Field(default=10_000, ge=1000)
    """Bootstrap resamples. At 10,000 the Monte-Carlo error of a 95% limit is below 2% of its
    width."""

    seed: int = Field(default=42, ge=0)
    """Seed of the bootstrap; the same tables and seed give the same selection."""

    correction: Literal["holm", "bonferroni", "none"] = "holm"
    """How p-values on tuning prompts allow for the number of candidates. Holm controls the same
    error as Bonferroni and is never weaker. The held-out test needs none: it tests one alpha."""

    prefer: Literal["smallest-within-noise", "best"] = "smallest-within-noise"
    """Which of the eligible candidates goes to the held-out prompts. A reward model is an
    imperfect judge whose error grows with the distance travelled, so by default it is the
    smallest alpha whose gain is not significantly below the best one's (paired test between the
    two); `best` takes the highest mean reward."""

    min_gain: float = Field(default=0.0, ge=0)
    """Gains up to this are not called gains; set it to the spread that batching causes in the
    scores of the reward model."""

    min_pairs: int = Field(default=10, ge=2)
    """Prompts scored under both models that a test needs, on tuning and on held-out prompts each;
    below ten a bootstrap interval is not worth its name."""

    max_error_rate: float = Field(default=0.01, ge=0, le=1)
    """Largest share of rewards that may be null or missing. Rows do not fail at random (long ones
    fail first), so a mean over the rest would flatter the candidate."""

    max_length_ratio: float | None = Field(default=1.3, gt=0)
    """Largest mean response length relative to alpha 0; null switches the limit off. Reward models
    like length. The twelve published models that gained grew by 4% to 30%; in trials with a known
    truth, choices that were really worse had grown by 31% to 48%. Models aligned on a tenth of
    their data doubled in the paper and still gained: raise the limit for those, and only together
    with a guard reward model."""

    min_length_ratio: float | None = Field(default=0.7, ge=0)
    """Smallest mean response length relative to alpha 0; null switches the limit off. All published
    extrapolated models write longer, so a clearly shorter one has lost part of its answers."""

    max_truncation_rate: float = Field(default=0.10, ge=0, le=1)
    """Largest share of responses that stop at the token limit. Where the aligned model itself is
    above it, the candidate must not be above the aligned model."""

    max_truncation_increase: float = Field(default=0.05, ge=0, le=1)
    """Largest increase of that share over alpha 0: a model that no longer ends has collapsed."""

    max_repetition_increase: float = Field(default=0.05, ge=0, le=1)
    """Largest increase over alpha 0 of the share of four-word sequences that repeat within a
    response; at the published alphas this share does not rise at all."""

    guard_agreement: Literal["sign", "significant"] = "sign"
    """What a guard reward model must say of a candidate: `sign`, its mean gain is positive too;
    `significant`, its interval lies above zero."""
