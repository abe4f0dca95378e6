"""How responses are sampled. Light: recipes and the command line import it without torch."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from expo_ray.flags import Flag

SAMPLING_PANEL = "Sampling"
StopText = Annotated[str, Field(min_length=1)]


class SamplingParams(BaseModel):
    """Sampling settings of a run: the same for every candidate alpha."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)

    temperature: Annotated[float, Flag(panel=SAMPLING_PANEL)] = Field(
        0.7, ge=0, description="0 is greedy."
    )
    top_p: Annotated[float, Flag(panel=SAMPLING_PANEL)] = Field(
        0.9, gt=0, le=1, description="Smallest set of tokens with this share; 1 takes all."
    )
    top_k: Annotated[int, Flag(panel=SAMPLING_PANEL)] = Field(
        50, ge=0, description="Only the k likeliest tokens; 0 takes all."
    )
    max_tokens: Annotated[int, Flag(panel=SAMPLING_PANEL)] = Field(
        512, ge=1, description="Longest response; less where the model's context ends before."
    )
    stop: Annotated[tuple[StopText, ...], Flag(panel=SAMPLING_PANEL, repeats=True)] = Field(
        (), description="Text that ends a response, left out."
    )
    presence_penalty: float = Field(
        0.0, ge=-2, le=2, description="Taken once off a token that the response has already."
    )
    frequency_penalty: float = Field(
        0.0,
        ge=-2,
        le=2,
        description="Taken off a token as often as the response has it.",
    )
    num_samples: Annotated[int, Flag(panel=SAMPLING_PANEL)] = Field(
        1, ge=1, description="Responses per prompt."
    )
    seed: Annotated[int, Flag(panel=SAMPLING_PANEL)] = Field(
        42, ge=0, description="Seed of the run; each row derives its own."
    )


PAPER_SAMPLING = SamplingParams(
    temperature=0.7,
    top_p=0.9,
    top_k=50,
    max_tokens=2048,
    presence_penalty=0.1,
    frequency_penalty=0.1,
    seed=42,
)
"""The settings of the method's authors (their code; the paper's text says top_k 40)."""
