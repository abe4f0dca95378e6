"""What a reward model is to the other rooms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from expo_ray.errors import TableError
from expo_ray.redaction import redacted
from expo_ray.tables.prompts import Message

Chat = Sequence[Message]
References = Sequence[str | None]
Row = TypeVar("Row")


@dataclass(frozen=True, kw_only=True, slots=True)
class RewardScore:
    """The reward of one chat, or why there is none."""

    reward: float | None
    """The raw score; None exactly where `error` is set, never 0 in its place."""
    tokens: int
    """Tokens of the chat as the reward model reads it; 0 where that is not known."""
    truncated: bool = False
    """Whether the chat is longer than the reward model can read: refused, or, where there is a
    reward, read without its beginning, because that was asked for."""
    error: str | None = None
    """Why there is no reward."""
    unreadable: str | None = None
    """Of a check's wrong answer: what it lacks that could be checked at all."""

    @classmethod
    def failed(cls, error: str, *, tokens: int = 0) -> Self:
        """Return the score of a chat that could not be scored."""
        return cls(reward=None, tokens=tokens, error=redacted(error))


class RewardModel(Protocol):
    """Anything that scores chats."""

    name: str
    """What the rewards table calls it."""
    revision: str
    """What pins it: a weights digest, a commit, a digest of the judge's prompt."""
    settings: str
    """What else decides a score: tokenizer, chat template, config, dtype, engine, a judge's address
    and sampling. Part of cache keys, and of the identity of a rewards table."""
    needs_reference: bool
    """Whether it compares each response with another one to the same prompt."""

    def score(
        self, chats: Sequence[Chat], references: References | None = None
    ) -> list[RewardScore]:
        """Score chats whose last turn is the assistant's, in the order given.

        Args:
            chats: The chats.
            references: For a pairwise model: what each last turn is compared with.
        """
        ...


def read_chats(chats: Sequence[Chat], read: Callable[[Chat], Row]) -> list[Row | RewardScore]:
    """Return what `read` makes of each chat; one that cannot be read says so and stops no other."""
    rows: list[Row | RewardScore] = []
    for chat in chats:
        try:
            rows.append(read(chat))
        except TableError as error:
            rows.append(RewardScore.failed(str(error)))
    return rows
