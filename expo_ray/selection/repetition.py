"""How much a text repeats itself."""

from __future__ import annotations

NUM_WORDS = 4


def repeated_share(text: str, *, num_words: int = NUM_WORDS) -> float:
    """Return the share of word sequences that occurred before within the text.

    Args:
        text: A response.
        num_words: Length of the sequences; shorter texts count as free of repetition.
    """
    words = text.split()
    num_sequences = len(words) - num_words + 1
    if num_sequences <= 1:
        return 0.0
    distinct = {tuple(words[i : i + num_words]) for i in range(num_sequences)}
    return 1 - len(distinct) / num_sequences
