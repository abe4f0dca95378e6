"""From token ids to text, piece by piece: whole characters, nothing past a stop text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_INCOMPLETE = "\ufffd"


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Return the ids of a tokenizer's special tokens."""
    return frozenset(i for i, token in tokenizer.added_tokens_decoder.items() if token.special)


def response_text(
    tokenizer: Any, ids: Sequence[int], *, ended: bool, kept: frozenset[int] | None = None
) -> str:
    """Decode a whole response.

    Args:
        tokenizer: A transformers tokenizer.
        ids: The generated tokens.
        ended: Whether the last one ends the text; it is left out.
        kept: `special_ids` where special tokens in mid-text are part of it; None hides them.
    """
    content = list(ids[:-1] if ended else ids)
    # A turn may end in two of them, of which only the last one ends the text.
    while ended and kept and content and content[-1] in kept:
        content.pop()
    return str(tokenizer.decode(content, skip_special_tokens=kept is None))


class TextStream:
    """Decodes one response as its tokens come.

    Args:
        tokenizer: A transformers tokenizer.
        stop: Texts that end the response; they and what follows are left out.
        keep_special_tokens: Whether special tokens are part of the text.
        keep_stop: Whether the stop text itself is part of it.
    """

    def __init__(
        self,
        tokenizer: Any,
        stop: Sequence[str] = (),
        *,
        keep_special_tokens: bool = False,
        keep_stop: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._skips_special = not keep_special_tokens
        self._stop = stop
        self._keeps_stop = keep_stop
        self._ids: list[int] = []
        self._prefix = 0
        self._read = 0
        self._held = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """Add a token and return the text that is certain now, which may be empty."""
        self._ids.append(token)
        return self._emit(self._decode_new(flush=False), flush=False)

    def finish(self) -> str:
        """Return whatever was held back; no more tokens will come."""
        return "" if self.stopped else self._emit(self._decode_new(flush=True), flush=True)

    def _decode_new(self, *, flush: bool) -> str:
        # Decoded with a few earlier tokens, because a tokenizer may treat the first one
        # differently (a leading space); a character may need several tokens.
        before = self._decode(self._ids[self._prefix : self._read])
        after = self._decode(self._ids[self._prefix :])
        if after.endswith(_INCOMPLETE) and not flush:
            return ""
        self._prefix, self._read = self._read, len(self._ids)
        return after[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=self._skips_special)
        return text

    def _emit(self, new: str, *, flush: bool) -> str:
        text = self._held + new
        found = [(at, s) for s in self._stop if (at := text.find(s)) >= 0]
        if found:
            self.stopped = True
            self._held = ""
            at, stop = min(found)
            return text[: at + len(stop) * self._keeps_stop]
        held = 0 if flush else self._num_held(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def _num_held(self, text: str) -> int:
        """Return how many characters at the end may be the beginning of a stop text."""
        return max(
            (n for s in self._stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0
        )
