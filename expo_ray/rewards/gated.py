"""Rewards on several objectives, weighted by the prompt: the form of ArmoRM.

    objectives_K = regression(hidden state of the last token) @ transform_KK
    gates_K      = scale * softmax(MLP(hidden state of the prompt's last token) / temperature)
    reward       = sum over K of gates * objectives

Shape legend: B rows, T tokens, H hidden, K objectives.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

from expo_ray.checkpoints import Checkpoint, weights_digest
from expo_ray.errors import TableError
from expo_ray.rewards.batching import TokenRow, pad_right
from expo_ray.rewards.chat_model import ChatRewardModel
from expo_ray.rewards.interface import Chat
from expo_ray.rewards.own_head import load_with_head
from expo_ray.rewards.pretrained import (
    ChatTokenizer,
    config_digest,
    load_tokenizer,
    max_chat_tokens,
    num_token_ids,
)


class _Gating(nn.Module):
    def __init__(
        self, hidden_size: int, num_objectives: int, *, width: int, num_hidden: int, heat: float
    ) -> None:
        super().__init__()
        sizes = [hidden_size, *[width] * num_hidden]
        layers = [nn.Linear(a, b) for a, b in pairwise(sizes)]
        self.layers = nn.ModuleList([*layers, nn.Linear(sizes[-1], num_objectives)])
        self.logit_scale = nn.Parameter(torch.ones(1))
        self._heat = heat

    def forward(self, prompt_bh: torch.Tensor) -> torch.Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            prompt_bh = layer(prompt_bh).relu()
        gates_bk: torch.Tensor = (last(prompt_bh) / self._heat).softmax(dim=1) * self.logit_scale
        return gates_bk


class _Head(nn.Module):
    """Named as in the checkpoint."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        config = checkpoint.config
        hidden_size, num_objectives = config["hidden_size"], config.get("num_objectives", 19)
        self.regression_layer = nn.Linear(hidden_size, num_objectives, bias=False)
        self.reward_transform_matrix = nn.Parameter(torch.eye(num_objectives))
        self.gating = _Gating(
            hidden_size,
            num_objectives,
            width=config.get("gating_hidden_dim", 1024),
            num_hidden=config.get("gating_n_hidden", 3),
            heat=config.get("gating_temperature", 10),
        )

    def forward(self, last_bh: torch.Tensor, prompt_bh: torch.Tensor) -> torch.Tensor:
        objectives_bk = self.regression_layer(last_bh) @ self.reward_transform_matrix
        rewards_b: torch.Tensor = (self.gating(prompt_bh) * objectives_bk).sum(dim=1)
        return rewards_b


class GatedRewardModel(ChatRewardModel):
    """A `LlamaForRewardModelWithGating`; its backbone may be any that transformers knows.

    Args:
        checkpoint: Where its weights are.
        name: What the rewards table calls it.
        device: "cpu" (computes in float32) or "cuda" (the checkpoint's dtype, float32 head).
        dtype: Compute the backbone in this dtype instead.

    Raises:
        CheckpointError: A tensor of backbone or head is missing, no tokenizer or chat template.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        name: str,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        self._chats = ChatTokenizer(load_tokenizer(checkpoint), where=checkpoint.uri)
        self._chats.require_template()
        self._head = _Head(checkpoint)
        self._model = load_with_head(
            checkpoint, self._head, prefix="model.", device=device, dtype=dtype
        )
        self._device = device
        self.name = name
        self.revision = weights_digest(checkpoint)
        self.settings = f"{self._chats.digest} {config_digest(checkpoint)} {self._model.dtype}"
        self.max_tokens = max_chat_tokens(self._model)
        self.num_token_ids = num_token_ids(self._model)

    def _read(self, chat: Chat) -> TokenRow:
        ids, prompt = self._chats.ids(chat), self._chats.ids(chat[:-1])
        if not prompt or ids[: len(prompt)] != prompt:
            raise TableError("the chat template does not continue the prompt, which sets the gates")
        return TokenRow(ids, start=len(prompt) - 1)

    def _rewards(self, rows: list[TokenRow]) -> list[float]:
        ids_bt, mask_bt = pad_right([row.ids for row in rows], pad_id=0, device=self._device)
        with torch.inference_mode():
            hidden_bth = self._model(input_ids=ids_bt, attention_mask=mask_bt).last_hidden_state
            every = torch.arange(len(rows), device=self._device)
            last_bh = hidden_bth[every, [len(row.ids) - 1 for row in rows]].float()
            prompt_bh = hidden_bth[every, [row.start for row in rows]].float()
            rewards: list[float] = self._head(last_bh, prompt_bh).tolist()
        return rewards
