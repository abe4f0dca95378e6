"""What reward models that read each chat by itself share: chats to rows, rows to scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from expo_ray.rewards.batching import MAX_PADDING, TokenRow, score_rows
from expo_ray.rewards.interface import Chat, References, RewardScore, read_chats


class ChatRewardModel(ABC):
    """A model that scores chats in batches of like length; see `RewardModel`."""

    needs_reference = False
    max_padding = MAX_PADDING
    max_tokens: int | None
    """How many tokens it reads; None where its config does not say."""
    truncates = False
    """Whether longer chats are read without their beginning; otherwise they get no reward."""
    num_token_ids: int
    """How many tokens it has an embedding for."""

    def score(
        self, chats: Sequence[Chat], references: References | None = None
    ) -> list[RewardScore]:
        """Score chats in batches of like length.

        Args:
            chats: Chats whose last turn is the assistant's.
            references: Not looked at.
        """
        return score_rows(
            read_chats(chats, self._read),
            self._rewards,
            max_tokens=self.max_tokens,
            num_token_ids=self.num_token_ids,
            truncates=self.truncates,
            max_padding=self.max_padding,
            **self._batch_limits(),
        )

    def _batch_limits(self) -> Mapping[str, int]:
        """Return narrower limits of a batch than `score_rows` has."""
        return {}

    @abstractmethod
    def _read(self, chat: Chat) -> TokenRow:
        """Return a chat as token ids; a TableError says why it cannot be read."""

    @abstractmethod
    def _rewards(self, rows: list[TokenRow]) -> list[float]:
        """Return the rewards of one batch."""
