"""What drivers and replicas tell each other about weights and rows. Light: no torch, no ray."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from expo_ray.errors import ExpoError
from expo_ray.serving.engines.interface import Generated
from expo_ray.serving.sampling import SamplingParams
from expo_ray.tables.prompts import Message
from expo_ray.tables.thoughts import AUTO, Reasoning


@dataclass(frozen=True, kw_only=True, slots=True)
class Loaded:
    """What a replica says about the weights that it holds."""

    weights_digest: str | None
    max_model_len: int
    model: str | None = None
    """Name of their source, alpha included."""
    error: ExpoError | None = None
    """Why there are none. A value, because an exception would lose its type on the way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ChatRow:
    """One response that a driver asks for."""

    messages: Sequence[Message]
    params: SamplingParams
    seed: int
    reasoning: Reasoning = AUTO
    """How thoughts are marked, which are no part of the response."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Answered:
    """The responses of a chunk and the digest of the weights that made them."""

    loaded: Loaded
    responses: list[Generated]


NOTHING_LOADED = Loaded(weights_digest=None, max_model_len=0)


def refused(error: str, prompt_tokens: int = 0) -> Generated:
    """Return the response of a row that no engine was asked for."""
    return Generated(
        text="",
        finish_reason="length",
        prompt_tokens=prompt_tokens,
        completion_tokens=0,
        error=error,
    )
