"""Telling thoughts from answers in a replica, where chat template and tokenizer are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from expo_ray.rewards.pretrained import ChatTokenizer
from expo_ray.serving.engines.interface import Generated, Row
from expo_ray.tables.prompts import Message
from expo_ray.tables.thoughts import TAGS, Reasoning, ThoughtTag, opened_by, tags_in

_TAIL_TOKENS = 48
"""At the end of a prompt: more than any opening tag has, spelled out letter by letter."""


class ThoughtReader:
    """Reads the responses of one model.

    Args:
        tokenizer: A transformers tokenizer.
        chats: The same, for chats.
    """

    def __init__(self, tokenizer: Any, chats: ChatTokenizer) -> None:
        self._tokenizer = tokenizer
        self._chats = chats
        self._known = tags_in(str(tokenizer.chat_template or ""))

    def tell_apart(
        self,
        made: Generated,
        row: Row,
        *,
        messages: Sequence[Message],
        reasoning: Reasoning,
    ) -> Generated:
        """Return a response with its thought aside, see `Engine`."""
        if made.error is not None or reasoning.mode == "off":
            return replace(made, token_ids=())
        inside = self._opened(row.prompt_ids, messages, reasoning)
        found = reasoning.split(made.text, known=self._known, inside=inside)
        return replace(
            made,
            text=found.answer,
            thought=found.thought,
            thought_tokens=self._num_tokens(made.token_ids, found.start, len(made.text)),
            token_ids=(),
        )

    def _opened(
        self, prompt_ids: list[int], messages: Sequence[Message], reasoning: Reasoning
    ) -> ThoughtTag | None:
        """Return the tag that the template has opened at the end of the prompt."""
        tags = TAGS if reasoning.tag is None else (reasoning.tag,)
        opened = opened_by(self._tail(prompt_ids), tags)
        if opened is None or not messages[-1]["content"].rstrip().endswith(opened.opens):
            return opened
        # The question itself ends in a tag: is it the last thing that the model reads?
        return None if opened_by(self._tail(self._chats.ids(messages)), tags) else opened

    def _tail(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids[-_TAIL_TOKENS:], skip_special_tokens=False))

    def _num_tokens(self, ids: Sequence[int], num_chars: int, of_chars: int) -> int:
        """Return the least number of tokens whose text is so long."""
        if num_chars >= of_chars:
            return len(ids) if num_chars else 0
        low, high = 0, len(ids)
        while low < high:
            middle = (low + high) // 2
            text = self._tokenizer.decode(ids[:middle], skip_special_tokens=False)
            low, high = (middle + 1, high) if len(text) < num_chars else (low, middle)
        return low
