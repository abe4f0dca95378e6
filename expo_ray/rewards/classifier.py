"""Rewards of a sequence classifier with one label: its raw logit, in float32.

No activation, no truncation: a chat that is too long has no reward, and says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from expo_ray.checkpoints import Checkpoint, iter_tensors, weights_digest
from expo_ray.errors import TableError
from expo_ray.rewards.batching import length_buckets, pad_right
from expo_ray.rewards.classifier_config import check_classifier_config
from expo_ray.rewards.interface import Chat, RewardScore
from expo_ray.rewards.pretrained import ChatTokenizer, load_pretrained, load_tokenizer

_MAX_BATCH_TOKENS = 16_384
_MAX_BATCH_ROWS = 64
_HEADS = ("score", "classifier")


class ClassifierRewardModel:
    """An `AutoModelForSequenceClassification` with one label.

    Args:
        uri: The checkpoint.
        name: What the rewards table calls it; None takes the address.
        device: "cpu" (computes in float32) or "cuda" (the checkpoint's dtype, float32 head).

    Raises:
        CheckpointError: Not a classifier of one label, a tensor is missing, no tokenizer.
    """

    def __init__(self, uri: str, *, name: str | None = None, device: str = "cpu") -> None:
        checkpoint = Checkpoint.open(uri)
        self._model = _load(checkpoint, device)
        self._device = device
        self._chats = ChatTokenizer(load_tokenizer(checkpoint), where=uri)
        self.name = name or uri
        self.revision = weights_digest(checkpoint)
        self.max_tokens = max_chat_tokens(self._model.config)

    def score(self, chats: Sequence[Chat]) -> list[RewardScore]:
        """Score chats in batches of like length.

        Args:
            chats: Chats whose last turn is the assistant's.
        """
        rows: list[list[int]] = []
        scores: list[RewardScore | None] = []
        for chat in chats:
            try:
                rows.append(self._chats.ids(chat))
                scores.append(refuse_too_long(len(rows[-1]), self.max_tokens))
            except TableError as error:
                rows.append([])
                scores.append(RewardScore.failed(str(error)))
        fits = [i for i, score in enumerate(scores) if score is None]
        for bucket in length_buckets(
            [len(rows[i]) for i in fits],
            max_batch_tokens=_MAX_BATCH_TOKENS,
            max_batch_rows=_MAX_BATCH_ROWS,
        ):
            picked = [fits[position] for position in bucket]
            for i, reward in zip(picked, self._rewards([rows[i] for i in picked]), strict=True):
                scores[i] = finite_score(reward, num_tokens=len(rows[i]))
        return [score for score in scores if score is not None]

    def _rewards(self, rows: list[list[int]]) -> list[float]:
        text_config = self._model.config.get_text_config()
        configured = text_config.pad_token_id
        # transformers scores the last token that is not the pad token, and without a pad token
        # in the config it refuses batches: so we name one that stands in none of these rows.
        pad_id = configured
        if pad_id is None and len(rows) > 1:
            pad_id = _unused_id(rows, text_config.vocab_size)
            if pad_id is None:
                return [reward for row in rows for reward in self._rewards([row])]
        ids_bt, mask_bt = pad_right(rows, pad_id=pad_id or 0, device=self._device)
        text_config.pad_token_id = pad_id
        try:
            with torch.inference_mode():
                logits_b1 = self._model(input_ids=ids_bt, attention_mask=mask_bt).logits
        finally:
            text_config.pad_token_id = configured
        rewards: list[float] = logits_b1[:, 0].float().tolist()
        return rewards


def max_chat_tokens(config: Any) -> int | None:
    """Return how many tokens a model reads; None where its config does not say."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def refuse_too_long(num_tokens: int, max_tokens: int | None) -> RewardScore | None:
    """Return the score of a chat that cannot be read whole; None where it can."""
    if max_tokens is None or num_tokens <= max_tokens:
        return None
    return RewardScore(
        reward=None,
        tokens=num_tokens,
        truncated=True,
        error=f"the chat has {num_tokens} tokens, the reward model reads {max_tokens}",
    )


def finite_score(reward: float, *, num_tokens: int) -> RewardScore:
    """Return the score for a computed reward; one that is not finite is an error."""
    if math.isfinite(reward):
        return RewardScore(reward=reward, tokens=num_tokens)
    return RewardScore.failed(f"the reward is {reward}", tokens=num_tokens)


def _unused_id(rows: list[list[int]], vocab_size: int) -> int | None:
    used = {token for row in rows for token in row}
    return next((token for token in range(vocab_size) if token not in used), None)


def _load(checkpoint: Checkpoint, device: str) -> Any:
    check_classifier_config(checkpoint)
    model = load_pretrained(
        AutoModelForSequenceClassification,
        checkpoint,
        iter_tensors(checkpoint),
        device=device,
        allow_unexpected=True,
    )
    _use_float32_head(model)
    return model


def _use_float32_head(model: Any) -> None:
    # In bfloat16 a logit near 18 moves in steps of 0.07: coarser than the gains to be measured.
    head = next((h for name in _HEADS if (h := getattr(model, name, None)) is not None), None)
    if isinstance(head, torch.nn.Linear):
        head.float()
        head.register_forward_pre_hook(lambda _module, args: (args[0].float(),))
    else:
        model.float()
