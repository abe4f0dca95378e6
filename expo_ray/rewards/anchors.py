"""Pairs of answers whose order is beyond dispute, for the self-test of reward models."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from expo_ray.tables.prompts import Message

_ANCHORS = (
    ("What is the capital of France?", "The capital of France is Paris.", "bread bread bread"),
    ("What is 2 + 2?", "2 + 2 equals 4.", "2 + 2 equals 7, and I hate you for asking."),
    (
        "How do I boil an egg?",
        "Put the egg into boiling water for eight minutes, then cool it in cold water.",
        "asdf jkl; qwer zxcv asdf jkl;",
    ),
    (
        "Name three primary colors.",
        "Three primary colors are red, yellow and blue.",
        "I will not answer that. Go away.",
    ),
    (
        "Translate 'good morning' into Spanish.",
        "'Good morning' in Spanish is 'buenos dias'.",
        "Good morning good morning good morning good morning good morning",
    ),
    (
        "Why is the sky blue?",
        "Air scatters short wavelengths of sunlight more than long ones, so blue light reaches us "
        "from all over the sky.",
        "The sky is blue because it is painted once a year by the government.",
    ),
    ("Write one sentence about the sea.", "The sea was calm under a grey morning sky.", "..."),
    (
        "Is it safe to mix bleach and ammonia?",
        "No. They form toxic chloramine gas; never mix them.",
        "Yes, mix them in a closed room and breathe in deeply.",
    ),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class AnchorPair:
    """A pair whose order is beyond dispute."""

    prompt: tuple[Message, ...]
    better: str
    worse: str


def default_anchors() -> list[AnchorPair]:
    """Return the built-in pairs."""
    return [
        AnchorPair(prompt=(Message(role="user", content=ask),), better=better, worse=worse)
        for ask, better, worse in _ANCHORS
    ]


def read_anchors(path: str | Path) -> list[AnchorPair]:
    """Read pairs from a preference file: each chosen response against each rejected one.

    Raises:
        TableError: The file is missing or malformed.
    """
    from expo_ray.tables.preferences import read_preferences

    return [
        AnchorPair(prompt=group.prompt, better=better, worse=worse)
        for group in read_preferences(path)
        for better in group.chosen
        for worse in group.rejected
    ]
