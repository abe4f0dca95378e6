"""A reward model in vLLM's pooling runner: our token ids and rules, vLLM's batches.

Within the process of its replica: there is nothing that could outlive it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig
from vllm import LLM

from expo_ray.checkpoints.local_files import local_folder
from expo_ray.errors import CheckpointError, argument
from expo_ray.rewards.batching import TokenRow
from expo_ray.rewards.chat_model import ChatRewardModel
from expo_ray.rewards.interface import Chat
from expo_ray.rewards.pretrained import (
    ChatTokenizer,
    config_digest,
    load_tokenizer,
    max_positions,
)
from expo_ray.serving.engines.vllm_config import source_fields
from expo_ray.serving.engines.vllm_worker import EXTENSION, LOAD_FORMAT
from expo_ray.serving.source import ModelSource

_LEAST_KV_CACHE_BYTES = 2**30
_SPARE_TOKENS = 256
"""Room in the cache for blocks that are not full, and one that vLLM keeps."""


class VLLMRewardModel(ChatRewardModel):
    """A classifier with one label that `engines.vllm` has checked: its raw logit.

    Args:
        source: Where its weights are.
        name: What the rewards table calls it.
        device: "cpu" (computes in float32) or "cuda" (the checkpoint's dtype, float32 head).

    Raises:
        CheckpointError: vLLM cannot load it, or it has no tokenizer or chat template.
    """

    max_padding = 1.0  # vLLM lays rows end to end: there is none

    def __init__(self, source: ModelSource, *, name: str, device: str) -> None:
        checkpoint = source.open()
        self._chats = ChatTokenizer(load_tokenizer(checkpoint), where=checkpoint.uri)
        self._chats.require_template()
        config = AutoConfig.from_pretrained(local_folder(checkpoint), trust_remote_code=False)
        on_cpu = device == "cpu"
        dtype = torch.float32 if on_cpu else config.dtype or torch.float32
        self.name = name
        self.max_tokens = max_positions(config)
        self.num_token_ids = config.vocab_size
        self._pad_id = config.pad_token_id
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        try:
            self._llm = LLM(
                model=str(local_folder(checkpoint)),
                runner="pooling",
                convert="classify",
                # No activation, whatever the checkpoint says of it, and nothing else that is
                # asked of vLLM alone.
                pooler_config={
                    "task": "classify",
                    "seq_pooling_type": "LAST",
                    "use_activation": False,
                },
                hf_overrides={
                    "head_dtype": "float32",
                    "classifier_from_token": None,
                    "method": None,
                    "is_original_qwen3_reranker": False,
                },
                load_format=LOAD_FORMAT,
                model_loader_extra_config=source_fields(source),
                worker_extension_cls=EXTENSION,
                dtype=dtype,
                max_model_len=self.max_tokens,
                # A score must not hang on what was scored before, nor the self-test compare
                # numbers with themselves.
                enable_prefix_caching=False,
                **(_cpu_settings(config, self.max_tokens) if on_cpu else {}),
            )
        except (AssertionError, RuntimeError, ValueError) as error:
            raise CheckpointError(
                "vLLM cannot load the reward model",
                where=checkpoint.uri,
                got=error,
                hint=f"leave {argument('engine')} out",
            ) from error
        [self.revision] = self._llm.collective_rpc("expo_ray_digest")
        self.settings = f"{self._chats.digest} {config_digest(checkpoint)} {dtype} vllm"

    def _read(self, chat: Chat) -> TokenRow:
        return TokenRow(self._chats.ids(chat))

    def _batch_limits(self) -> Mapping[str, int]:
        return {"max_batch_tokens": sys.maxsize}  # vLLM divides what it is given

    def _rewards(self, rows: list[TokenRow]) -> list[float]:
        prompts = [{"prompt_token_ids": self._judged(row.ids)} for row in rows]
        found = self._llm.classify(prompts, use_tqdm=False)
        return [float(row.outputs.probs[0]) for row in found]

    def _judged(self, ids: list[int]) -> list[int]:
        """Return a chat up to the token that transformers scores: the last that does not pad."""
        end = len(ids)
        while end > 1 and ids[end - 1] == self._pad_id:
            end -= 1
        return ids[:end]


def _cpu_settings(config: Any, max_tokens: int | None) -> dict[str, Any]:
    """Return settings of a machine without a GPU: memory for the longest chat, no compiling."""
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    num_floats = 2 * config.num_hidden_layers * config.num_key_value_heads * head_size
    longest_bytes = 4 * num_floats * ((max_tokens or 0) + _SPARE_TOKENS)
    return {
        "enforce_eager": True,
        "kv_cache_memory_bytes": max(_LEAST_KV_CACHE_BYTES, longest_bytes),
    }
