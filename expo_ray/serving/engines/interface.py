"""The seam between a replica and an engine. Light: no torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from expo_ray.serving.sampling import SamplingParams
from expo_ray.serving.source import ModelSource
from expo_ray.tables.prompts import Message

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """One response."""

    text: str
    finish_reason: FinishReason
    """"stop": the model ended it, or a stop text; "length": the limit on tokens."""
    prompt_tokens: int
    completion_tokens: int
    """Tokens that were generated, an end-of-text token included."""
    error: str | None = None
    """Why the text means nothing; None where it is fine."""


@dataclass(kw_only=True, slots=True)
class Row:
    """One response to make. The callbacks are called from the engine's thread."""

    prompt_ids: list[int]
    params: SamplingParams
    seed: int
    max_tokens: int
    """At least 1; with the prompt no more than the engine's context."""
    ignore_eos: bool = False
    """Whether an end-of-text token is a token like any other."""
    keep_special_tokens: bool = False
    """Whether special tokens in mid-text are part of the text, as tables have it that are scored
    and guarded; clients of a service are not shown them. Never the one that ends the response, or
    any directly before it."""
    on_text: Callable[[str], None] | None = None
    """Called with each new piece of text."""
    on_done: Callable[[Generated], None] | None = None
    """Called once, as soon as this row is finished."""
    cancelled: bool = False
    """Set by the caller when nobody waits for the response any more."""


class Engine(Protocol):
    """What a replica needs of an engine."""

    source: ModelSource
    weights_digest: str
    """Of the weights as they were loaded."""
    max_model_len: int
    """Tokens of prompt and response together."""

    def load(self, source: ModelSource) -> None:
        """Load weights, in place of any that were loaded before."""
        ...

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Return the token ids of a chat, with the assistant's turn opened."""
        ...

    def encode_text(self, text: str) -> list[int]:
        """Return the token ids of plain text."""
        ...

    def generate(self, rows: Sequence[Row]) -> list[Generated]:
        """Make one response per row, as one batch; blocks."""
        ...
