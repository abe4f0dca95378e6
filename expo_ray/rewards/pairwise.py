"""Rewards relative to a fixed response to the same prompt: the form of PairRM.

The model reads the prompt and two candidates and says by how much the first is better. Which of two
stands first moves it, so both orders are read:

    reward = (compare(response, reference) - compare(reference, response)) / 2

Swapped arguments give the opposite sign, and the reference itself gets exactly 0. Its natural
choice is the aligned model's response: the reward is then the gain over alpha 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch
from torch import nn

from expo_ray.checkpoints import Checkpoint, weights_digest
from expo_ray.errors import CheckpointError
from expo_ray.rewards.batching import MAX_PADDING, TokenRow, pad_right, score_rows
from expo_ray.rewards.interface import Chat, References, RewardScore
from expo_ray.rewards.own_head import load_with_head
from expo_ray.rewards.pretrained import (
    config_digest,
    load_tokenizer,
    num_token_ids,
    tokenizer_digest,
)

_MAX_PART_TOKENS = (1224, 412, 412)
"""The published limits: of the prompt and of each candidate."""
MAX_TOKENS = sum(_MAX_PART_TOKENS)
_MARKERS = {
    "<|source|>": "source_prefix_id",
    "<|candidate1|>": "cand1_prefix_id",
    "<|candidate2|>": "cand2_prefix_id",
}


class _Head(nn.Module):
    """Named as in the checkpoint; the layers between are dropout, which scoring leaves out."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        size = checkpoint.config["hidden_size"]
        self.head_layer = nn.Sequential(
            nn.Identity(),
            nn.Linear(2 * size, size),
            nn.Tanh(),
            nn.Identity(),
            nn.Linear(size, checkpoint.config.get("n_tasks", 1)),
        )

    def forward(self, source_bh: torch.Tensor, candidate_bh: torch.Tensor) -> torch.Tensor:
        scores_b: torch.Tensor = self.head_layer(torch.cat([source_bh, candidate_bh], dim=1)).mean(
            dim=1
        )
        return scores_b


class PairwiseRewardModel:
    """A `DebertaV2PairRM` as a score against a reference.

    Args:
        checkpoint: Where its weights are.
        name: What the rewards table calls it.
        device: "cpu" (computes in float32) or "cuda" (the checkpoint's dtype, float32 head).
        dtype: Compute the backbone in this dtype instead.

    Raises:
        CheckpointError: A tensor is missing, no tokenizer, or its markers are not in it.
    """

    needs_reference = True
    max_padding = MAX_PADDING
    max_tokens = MAX_TOKENS
    truncates = False

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        name: str,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        self._tokenizer = load_tokenizer(checkpoint)
        self._marker_ids = _marker_ids(self._tokenizer, checkpoint)
        self._head = _Head(checkpoint)
        self._model = load_with_head(
            checkpoint, self._head, prefix="pretrained_model.", device=device, dtype=dtype
        )
        self._device = device
        self._num_token_ids = num_token_ids(self._model)
        self.name = name
        self.revision = weights_digest(checkpoint)
        reading = f"both orders {tokenizer_digest(self._tokenizer)}"
        self.settings = f"{reading} {config_digest(checkpoint)} {self._model.dtype}"

    def score(
        self, chats: Sequence[Chat], references: References | None = None
    ) -> list[RewardScore]:
        """Score the last turns of chats against references.

        Args:
            chats: Chats whose last turn is the assistant's.
            references: Another last turn for each chat; without one there is no reward.
        """
        rows: list[TokenRow | RewardScore] = []
        for chat, reference in zip(chats, references or [None] * len(chats), strict=True):
            rows.extend(self._both_orders(chat, reference))
        scores = score_rows(
            rows,
            self._rewards,
            max_tokens=self.max_tokens,
            num_token_ids=self._num_token_ids,
            max_padding=self.max_padding,
        )
        return [_mean(one, other) for one, other in zip(scores[::2], scores[1::2], strict=True)]

    def _both_orders(
        self, chat: Chat, reference: str | None
    ) -> tuple[TokenRow | RewardScore, TokenRow | RewardScore]:
        response = chat[-1]["content"]
        if reference is None:
            failed = RewardScore.failed("there is no response to compare this one with")
            return failed, failed
        source = _source_text(chat[:-1])
        if any(marker in text for text in (source, response, reference) for marker in _MARKERS):
            failed = RewardScore.failed("the text holds a marker of the reward model's own input")
            return failed, failed
        row = self._row(source, response, reference)
        if response == reference:
            equal = RewardScore(reward=0.0, tokens=len(row.ids))
            return equal, equal
        return row, self._row(source, reference, response)

    def _row(self, source: str, first: str, second: str) -> TokenRow:
        texts = zip(_MARKERS, (source, first, second), strict=True)
        parts = [self._tokenizer.encode(marker + text) for marker, text in texts]
        too_long = sum(map(len, parts)) > self.max_tokens
        if too_long and self.truncates:
            parts = list(map(_cut_part, parts, self._marker_ids, _MAX_PART_TOKENS))
        return TokenRow(list(chain.from_iterable(parts)), truncated=too_long and self.truncates)

    def _rewards(self, rows: list[TokenRow]) -> list[float]:
        ids_bt, mask_bt = pad_right([row.ids for row in rows], pad_id=0, device=self._device)
        places = [[row.ids.index(marker) for row in rows] for marker in self._marker_ids]
        with torch.inference_mode():
            hidden_bth = self._model(input_ids=ids_bt, attention_mask=mask_bt).last_hidden_state
            every = torch.arange(len(rows), device=self._device)
            source_bh, first_bh, second_bh = (hidden_bth[every, p].float() for p in places)
            rewards_b = self._head(source_bh, first_bh) - self._head(source_bh, second_bh)
        rewards: list[float] = rewards_b.tolist()
        return rewards


def _mean(one: RewardScore, other: RewardScore) -> RewardScore:
    if one.reward is None or other.reward is None:
        return one if one.reward is None else other
    reward = (one.reward - other.reward) / 2
    return RewardScore(reward=reward, tokens=one.tokens, truncated=one.truncated)


def _cut_part(ids: list[int], marker_id: int, max_tokens: int) -> list[int]:
    """Leave out what follows the marker, as much as it takes: the end of a text stays."""
    start = ids.index(marker_id) + 1
    return [*ids[:start], *ids[start + max(0, len(ids) - max_tokens) :]]


def _source_text(turns: Chat) -> str:
    """Return the prompt: one question as it is, a conversation with its roles."""
    if len(turns) == 1:
        return turns[0]["content"]
    return "\n".join(f"{turn['role'].upper()}: {turn['content']}" for turn in turns)


def _marker_ids(tokenizer: Any, checkpoint: Checkpoint) -> list[int]:
    ids = [tokenizer.convert_tokens_to_ids(marker) for marker in _MARKERS]
    wanted = [checkpoint.config.get(key) for key in _MARKERS.values()]
    if ids != wanted or len(set(ids)) < len(ids):
        raise CheckpointError(
            "the tokenizer of the pairwise reward model lacks its markers",
            where=checkpoint.uri,
            got=dict(zip(_MARKERS, ids, strict=True)),
            expected=dict(zip(_MARKERS.values(), wanted, strict=True)),
        )
    return ids
