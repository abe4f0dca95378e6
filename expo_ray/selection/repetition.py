"""How much a text repeats itself, in words, or in characters where words are not told apart."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

NUM_WORDS = 4
NUM_CHARACTERS = 8
"""What a sequence is long where words are not told apart: a word of Chinese has about two."""
_MIN_UNSPACED_SHARE = 0.3
_MAX_WORD_LENGTH = 20
_MIN_CHARACTERS = 200
# Thai and Lao, Burmese, Khmer, Japanese and Chinese: written without spaces between words.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
    "\U00020000-\U0003ffff]"
)


def repeated_share(text: str) -> float:
    """Return the share of sequences that occurred before within the text.

    Args:
        text: A response; one with at most one sequence counts as free of repetition.
    """
    words = text.split()
    found = sequences(words, by_character=lacks_words(words))
    return 1 - len(set(found)) / len(found) if len(found) > 1 else 0.0


def lacks_words(words: Sequence[str]) -> bool:
    """Tell whether what spaces part are no words: another script, or a loop without any space.

    Args:
        words: The text, parted.
    """
    letters = "".join(words)
    num_unspaced = 0 if letters.isascii() else len(_UNSPACED.findall(letters))
    unspaced = num_unspaced >= _MIN_UNSPACED_SHARE * len(letters)
    # English never is that dense, but for single formulas, which are short.
    dense = len(letters) > max(_MAX_WORD_LENGTH * len(words), _MIN_CHARACTERS)
    return bool(letters) and (unspaced or dense)


def sequences(words: Sequence[str], *, by_character: bool) -> list[Hashable]:
    """Return every sequence of four words, or of eight characters, in order.

    Args:
        words: The text, parted.
        by_character: Whether its characters are looked at.
    """
    items, length = ("".join(words), NUM_CHARACTERS) if by_character else (tuple(words), NUM_WORDS)
    return [items[i : i + length] for i in range(len(items) - length + 1)]
