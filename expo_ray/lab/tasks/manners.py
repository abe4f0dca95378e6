"""Polite and rude phrases around an answer, and what they are worth."""

from __future__ import annotations

POLITE_OPENERS: tuple[str, ...] = ("Sure!", "Gladly!")
RUDE_OPENERS: tuple[str, ...] = ("Ugh!", "Not again!")
POLITE_CLOSERS: tuple[str, ...] = ("Enjoy!", "Hope it helps!")
RUDE_CLOSERS: tuple[str, ...] = ("Go away!", "Stop asking!")


def score_manners(text: str) -> tuple[float, str]:
    """Return the points for opener and closer, 1 or -1 each, and the text between them."""
    score = 0.0
    for phrases, points in ((POLITE_OPENERS, 1.0), (RUDE_OPENERS, -1.0)):
        found = next((p for p in phrases if text.startswith(p)), None)
        if found is not None:
            score, text = score + points, text.removeprefix(found)
            break
    for phrases, points in ((POLITE_CLOSERS, 1.0), (RUDE_CLOSERS, -1.0)):
        found = next((p for p in phrases if text.endswith(p)), None)
        if found is not None:
            score, text = score + points, text.removesuffix(found)
            break
    return score, text
