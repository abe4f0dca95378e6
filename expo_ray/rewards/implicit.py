"""The implicit reward of a preference-trained pair.

    reward = beta * (log p_aligned(answer | chat) - log p_initial(answer | chat))

over the tokens of the last assistant turn, whatever closes the turn included.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from expo_ray.checkpoints import iter_tensors, open_checkpoint, weights_digest
from expo_ray.checkpoints.opening import open_aligned
from expo_ray.errors import ConfigError, TableError
from expo_ray.rewards.batching import TokenRow, pad_right
from expo_ray.rewards.chat_model import ChatRewardModel
from expo_ray.rewards.interface import Chat
from expo_ray.rewards.pretrained import (
    WRITERS,
    ChatTokenizer,
    config_digest,
    load_pretrained,
    load_tokenizer,
    max_chat_tokens,
    num_token_ids,
)
from expo_ray.tables.thoughts import opened_by

# Logits are rows x tokens x vocabulary in float32, so batches stay small.
_MAX_BATCH_LOGITS = 2**26
_MAX_BATCH_ROWS = 32
_MAX_TAG_TOKENS = 48


class ImplicitRewardModel(ChatRewardModel):
    """The log-ratio of two causal language models.

    Args:
        initial: Checkpoint before preference training.
        aligned: Checkpoint after it; its tokenizer and chat template are used.
        beta: The factor on the log-ratio.
        device: "cpu" (float32) or "cuda" (the checkpoints' dtype, log-probabilities in float32).
        dtype: Compute in this dtype instead.

    Raises:
        CheckpointError: One of them cannot be loaded.
        ConfigError: Their vocabularies differ.
    """

    def __init__(
        self,
        *,
        initial: str,
        aligned: str,
        beta: float,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        first = open_checkpoint(initial)
        pair = [open_aligned(aligned, first), first]
        tokenizer = load_tokenizer(pair[0])
        if load_tokenizer(pair[1]).get_vocab() != tokenizer.get_vocab():
            raise ConfigError(
                "an implicit reward needs one vocabulary",
                where=initial,
                expected=f"that of {aligned}",
            )
        self._chats = ChatTokenizer(tokenizer, where=aligned)
        self._chats.require_template()
        self._aligned, self._initial = (
            load_pretrained(
                WRITERS,
                side,
                iter_tensors(side),
                device=device,
                dtype=dtype,
                allow_unexpected=True,
            )
            for side in pair
        )
        self._beta = beta
        self._device = device
        self._vocab_size = self._aligned.config.get_text_config().vocab_size
        both = (self._aligned, self._initial)
        self.num_token_ids = min(map(num_token_ids, both))
        limits = [max_chat_tokens(model) for model in both]
        self.max_tokens = min((limit for limit in limits if limit is not None), default=None)
        self.name = f"implicit:beta={beta:g}"
        self.revision = "/".join(weights_digest(side) for side in pair)
        configs = "/".join(map(config_digest, pair))
        self.settings = f"beta {beta!r} {self._chats.digest} {configs} {self._aligned.dtype}"

    def _batch_limits(self) -> Mapping[str, int]:
        return {
            "max_batch_tokens": _MAX_BATCH_LOGITS // self._vocab_size,
            "max_batch_rows": _MAX_BATCH_ROWS,
        }

    def _read(self, chat: Chat) -> TokenRow:
        ids = self._chats.ids(chat)
        opening = self._chats.ids(chat[:-1], add_generation_prompt=True)
        if ids[: len(opening)] != opening:
            opening = self._without_opened_thought(opening)
        if ids[: len(opening)] != opening or len(ids) == len(opening):
            raise TableError(
                "the chat template does not continue the prompt: the answer's tokens are not known"
            )
        return TokenRow(ids, start=len(opening))

    def _without_opened_thought(self, opening: list[int]) -> list[int]:
        """Return a prompt without a tag at its end.

        Templates that open a thought before each answer (DeepSeek-R1) write the answers of a chat
        without it.
        """
        for start in range(len(opening) - 1, max(0, len(opening) - _MAX_TAG_TOKENS), -1):
            tail = self._chats.text_of(opening[start:])
            tag = opened_by(tail)
            if tag is not None and tail.lstrip().startswith(tag.opens):
                return opening[:start]
        return opening

    def _rewards(self, rows: list[TokenRow]) -> list[float]:
        ids_bt, mask_bt = pad_right([row.ids for row in rows], pad_id=0, device=self._device)
        starts_b1 = torch.tensor([[row.start] for row in rows], device=self._device)
        positions_t = torch.arange(ids_bt.shape[1], device=self._device)
        answer_bt = (mask_bt == 1) & (positions_t >= starts_b1)
        ratio_bt = self._log_probs(self._aligned, ids_bt, mask_bt) - self._log_probs(
            self._initial, ids_bt, mask_bt
        )
        totals_b = ratio_bt.masked_fill(~answer_bt[:, 1:], 0.0).double().sum(dim=1)
        rewards: list[float] = (self._beta * totals_b).tolist()
        return rewards

    def _log_probs(self, model: Any, ids_bt: torch.Tensor, mask_bt: torch.Tensor) -> torch.Tensor:
        with torch.inference_mode():
            logits_btv = model(input_ids=ids_bt, attention_mask=mask_bt).logits[:, :-1].float()
            chosen_bt = logits_btv.gather(2, ids_bt[:, 1:, None]).squeeze(2)
            log_probs_bt: torch.Tensor = chosen_bt - logits_btv.logsumexp(dim=2)
            return log_probs_bt
