"""The seam between a replica and an engine. Light: no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from expo_ray.serving.sampling import SamplingParams
from expo_ray.serving.source import ModelSource
from expo_ray.tables.prompts import Message
from expo_ray.tables.thoughts import Reasoning

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
    thought: str | None = None
    """What was thought before the text, where that was told apart; None where nothing was."""
    thought_tokens: int = 0
    """Of the tokens, those before the answer."""
    token_ids: tuple[int, ...] = ()
    """The tokens themselves, for whoever tells them apart; they stay in the replica."""


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
    keep_stop: bool = False
    """Whether a stop text that ends the response is part of it."""
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

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Return the token ids of a chat, with the assistant's turn opened.

        Args:
            messages: The turns.
            add_generation_prompt: Whether to open the assistant's turn.
            continue_final_message: Whether to leave the last turn open.
            variables: What the template takes besides the chat.

        Raises:
            TableError: The template refuses the chat, or it is certain not to fit.
        """
        ...

    def encode_text(self, text: str) -> list[int]:
        """Return the token ids of plain text.

        Raises:
            TableError: It is certain not to fit.
        """
        ...

    def generate(self, rows: Sequence[Row]) -> list[Generated]:
        """Make one response per row, as one batch; blocks."""
        ...

    def tell_apart(
        self,
        made: Generated,
        row: Row,
        *,
        messages: Sequence[Message],
        reasoning: Reasoning,
    ) -> Generated:
        """Return a response with its thought aside, as `thought_reader` does by a tokenizer.

        Args:
            made: The response to a row.
            row: Its row.
            messages: The chat that the row was made from.
            reasoning: How thoughts are marked.
        """
        ...
