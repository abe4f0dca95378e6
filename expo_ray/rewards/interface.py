"""What a reward model is to the other rooms, and a self-test that holds for each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

from expo_ray.tables.prompts import Message

Chat = Sequence[Message]


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardScore:
    """The reward of one chat, or why there is none."""

    reward: float | None
    """The raw score; None exactly where `error` is set, never 0 in its place."""
    tokens: int
    """Tokens of the chat as the reward model reads it; 0 where that is not known."""
    truncated: bool = False
    """Whether the chat is longer than the reward model can read (refused, not cut)."""
    error: str | None = None
    """Why there is no reward."""

    @classmethod
    def failed(cls, error: str, *, tokens: int = 0) -> Self:
        """Return the score of a chat that could not be scored."""
        return cls(reward=None, tokens=tokens, error=error)


class RewardModel(Protocol):
    """Anything that scores chats."""

    name: str
    """What the rewards table calls it."""
    revision: str
    """What pins it: a weights digest, a commit, a digest of the judge's prompt."""

    def score(self, chats: Sequence[Chat]) -> list[RewardScore]:
        """Score chats whose last turn is the assistant's, in the order given."""
        ...


def batch_spread(model: RewardModel, chats: Sequence[Chat]) -> float:
    """Return the largest change of a reward between scoring alone and scoring all together.

    Padding mistakes show here: a sound model in float32 stays below 1e-4.

    Args:
        model: The reward model.
        chats: Chats of different lengths; those with an error are left out.
    """
    together = model.score(chats)
    alone = [model.score([chat])[0] for chat in chats]
    return max(
        (
            abs(a.reward - b.reward)
            for a, b in zip(together, alone, strict=True)
            if a.reward is not None and b.reward is not None
        ),
        default=0.0,
    )
