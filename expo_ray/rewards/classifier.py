"""Rewards of a sequence classifier with one label: its raw logit, in float32.

No activation, no truncation: a chat that is too long has no reward, and says so.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

from expo_ray.checkpoints import Checkpoint, iter_tensors, weights_digest
from expo_ray.rewards.batching import TokenRow, pad_right
from expo_ray.rewards.chat_model import ChatRewardModel
from expo_ray.rewards.checkpoint_kind import check_pad_token
from expo_ray.rewards.interface import Chat
from expo_ray.rewards.pretrained import (
    ChatTokenizer,
    config_digest,
    load_pretrained,
    load_tokenizer,
    max_chat_tokens,
    num_token_ids,
)

_HEADS = ("score", "classifier")


class ClassifierRewardModel(ChatRewardModel):
    """An `AutoModelForSequenceClassification` with one label.

    Args:
        checkpoint: Where its weights are.
        name: What the rewards table calls it.
        device: "cpu" (computes in float32) or "cuda" (the checkpoint's dtype, float32 head).
        dtype: Compute in this dtype instead; the head stays in float32.

    Raises:
        CheckpointError: A tensor is missing, no tokenizer or chat template, a wrong pad token.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        name: str,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        check_pad_token(checkpoint)
        self._chats = ChatTokenizer(load_tokenizer(checkpoint), where=checkpoint.uri)
        self._chats.require_template()
        self._model = load_pretrained(
            AutoModelForSequenceClassification,
            checkpoint,
            iter_tensors(checkpoint),
            device=device,
            dtype=dtype,
            allow_unexpected=True,
        )
        _use_float32_head(self._model)
        self._device = device
        self.name = name
        self.revision = weights_digest(checkpoint)
        self.settings = f"{self._chats.digest} {config_digest(checkpoint)} {self._model.dtype}"
        self.max_tokens = max_chat_tokens(self._model)
        self.num_token_ids = num_token_ids(self._model)

    def _read(self, chat: Chat) -> TokenRow:
        return TokenRow(self._chats.ids(chat))

    def _rewards(self, rows: list[TokenRow]) -> list[float]:
        text_config = self._model.config.get_text_config()
        configured = text_config.pad_token_id
        # transformers scores the last token that is not the pad token, and without a pad token
        # in the config it refuses batches: so we name one that stands in none of these rows.
        pad_id = configured
        if pad_id is None and len(rows) > 1:
            pad_id = _unused_id(rows, text_config.vocab_size)
            if pad_id is None:
                return [reward for row in rows for reward in self._rewards([row])]
        ids_bt, mask_bt = pad_right(
            [row.ids for row in rows], pad_id=pad_id or 0, device=self._device
        )
        text_config.pad_token_id = pad_id
        try:
            with torch.inference_mode():
                logits_b1 = self._model(input_ids=ids_bt, attention_mask=mask_bt).logits
        finally:
            text_config.pad_token_id = configured
        rewards: list[float] = logits_b1[:, 0].float().tolist()
        return rewards


def _unused_id(rows: list[TokenRow], vocab_size: int) -> int | None:
    used = {token for row in rows for token in row.ids}
    return next((token for token in range(vocab_size) if token not in used), None)


def _use_float32_head(model: Any) -> None:
    # In bfloat16 a logit near 18 moves in steps of 0.07: coarser than the gains to be measured.
    head = next((h for name in _HEADS if (h := getattr(model, name, None)) is not None), None)
    if isinstance(head, torch.nn.Linear):
        head.float()
        head.register_forward_pre_hook(lambda _module, args: (args[0].float(),))
    else:
        model.float()
