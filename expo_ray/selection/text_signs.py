"""Signs of broken text beside repetition: echoed prompts, leaked markers, another language."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from expo_ray.selection.repetition import (
    NUM_CHARACTERS,
    NUM_WORDS,
    lacks_words,
    sequences,
)

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

ECHOED_SHARE = 0.5
"""A response restates its prompt from this share of its sequences on."""
MIN_LETTERS = 40
"""Shorter texts, below about eight words, do not tell their language."""
MIN_PROBABILITY = 0.9
MAX_CHARACTERS = 2000
"""What is read of a text to tell its language."""

_MARKERS = re.compile(
    r"""<\|[A-Za-z0-9_ -]{1,40}\|>           # <|im_end|>, <|eot_id|>
      | <\uff5c[^<>\n]{1,40}\uff5c>          # the same with full-width bars
      | </?s> | <unk> | <pad> | <bos> | <eos>
      | <(?:start|end)_of_turn> | <(?:unused|extra_id_|reserved_)\d+>
      | \[/?INST\] | <</?SYS>> | \[(?:PAD|BOS|EOS|TOOL_CALLS|TOOL_RESULTS|AVAILABLE_TOOLS)\]
      | ^\#\#\#\ (?:Instruction|Response):
    """,
    re.VERBOSE | re.MULTILINE,
)


def echoes(prompt: str, response: str) -> bool:
    """Tell whether a response does little more than restate its prompt.

    Args:
        prompt: The last turn of the user.
        response: The answer; one of fewer than eight words (sixteen characters, where words are
            not told apart) echoes nothing.
    """
    words = _words(response)
    by_character = lacks_words(words)
    found = sequences(words, by_character=by_character)
    if len(found) <= (NUM_CHARACTERS if by_character else NUM_WORDS):
        return False
    asked = set(sequences(_words(prompt), by_character=by_character))
    return sum(s in asked for s in found) >= ECHOED_SHARE * len(found)


def leaks_markers(prompt: str, response: str) -> bool:
    """Tell whether a response writes out markers of a chat template that its prompt did not."""
    if not any(sign in response for sign in ("<", "[", "### ")):
        return False
    found = set(_MARKERS.findall(response))
    return bool(found - set(_MARKERS.findall(prompt)))


def changes_language(prompt: str, response: str) -> bool:
    """Tell whether a response is in another language than its prompt.

    False where one of them is too short or too mixed to tell.
    """
    asked, answered = language(prompt), language(response)
    return asked is not None and answered is not None and asked != answered


def last_question(messages: Sequence[Mapping[str, str]] | None) -> str:
    """Return the text of the last turn."""
    return str(messages[-1]["content"]) if messages else ""


@lru_cache(maxsize=20_000)
def language(text: str) -> str | None:
    """Return the ISO 639-1 code of a text's language, None where it cannot be told."""
    if not tells_language(text):
        return None
    code, probability = identifier().classify(text[:MAX_CHARACTERS])
    return str(code) if probability >= MIN_PROBABILITY else None


def tells_language(text: str) -> bool:
    """Tell whether a text has letters enough to be asked for its language."""
    # Most have them in their first lines.
    return any(
        sum(map(str.isalpha, text[:end])) >= MIN_LETTERS
        for end in (2 * MIN_LETTERS, MAX_CHARACTERS)
    )


@lru_cache(maxsize=1)
def identifier() -> LanguageIdentifier:
    """Return what tells languages."""
    # Imported here: its model is decompressed at import of the first text.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
