"""Drawing texts at random, for the writers of all tasks; and the ways in which answers break."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from expo_ray.lab.tasks.manners import (
    POLITE_CLOSERS,
    POLITE_OPENERS,
    RUDE_CLOSERS,
    RUDE_OPENERS,
)

T = TypeVar("T")


def pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    """Draw one of several options."""
    return options[int(rng.integers(len(options)))]


def draw_opener(rng: np.random.Generator) -> str:
    """Draw a polite or rude phrase before an answer, or none."""
    return pick(rng, (*POLITE_OPENERS, *RUDE_OPENERS, ""))


def draw_closer(rng: np.random.Generator) -> str:
    """Draw a polite or rude phrase behind an answer, or none."""
    return pick(rng, (*POLITE_CLOSERS, *RUDE_CLOSERS, ""))


def joined(pieces: Sequence[str]) -> str:
    """Return the text of an answer's pieces."""
    return " ".join(piece for piece in pieces if piece)


def shuffled_words(rng: np.random.Generator, answer: str) -> str:
    """Return word salad."""
    words = answer.split()
    return " ".join(words[i] for i in rng.permutation(len(words)))


def cut_short(rng: np.random.Generator, answer: str) -> str:
    """Return the beginning of an answer."""
    words = answer.split()
    return " ".join(words[: int(rng.integers(len(words)))])


def said_again(rng: np.random.Generator, answer: str) -> str:
    """Return an answer two to four times."""
    return " ".join([answer] * int(rng.integers(2, 5)))


def too_polite(rng: np.random.Generator, answer: str) -> str:
    """Return an answer with one to seven polite phrases more."""
    phrases = [*POLITE_OPENERS, *POLITE_CLOSERS]
    chosen = [pick(rng, phrases) for _ in range(int(rng.integers(1, 8)))]
    return " ".join([answer, *chosen] if rng.random() < 0.5 else [*chosen, answer])


def stuttered(rng: np.random.Generator, answer: str) -> str:
    """Return an answer with words repeated in place."""
    return " ".join(w for word in answer.split() for w in [word] * int(rng.choice((1, 1, 2, 3))))


DAMAGES: tuple[Callable[[np.random.Generator, str], str], ...] = (
    shuffled_words,
    cut_short,
    said_again,
    too_polite,
    stuttered,
)
"""Ways in which any answer can break."""
