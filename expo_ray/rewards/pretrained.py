"""Loading models whole, and chats as token ids with exactly one BOS.

Serving uses this as well, so that what is generated and what is scored are read alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import AutoTokenizer

from expo_ray.errors import CheckpointError, TableError
from expo_ray.tables.prompts import Message


def load_tokenizer(folder: str) -> Any:
    """Load the tokenizer of a checkpoint.

    Args:
        folder: Where the checkpoint lies.

    Raises:
        CheckpointError: There is none.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError("the tokenizer cannot be loaded", where=folder, got=error) from error


def load_pretrained(auto_class: Any, folder: str, *, device: str) -> Any:
    """Load a model with every tensor from its checkpoint: float32 on the CPU, else its own dtype.

    Args:
        auto_class: A transformers auto class.
        folder: Where the checkpoint lies.
        device: "cpu" or "cuda".

    Raises:
        CheckpointError: It cannot be loaded, or a tensor would be filled with random numbers.
    """
    try:
        model, info = auto_class.from_pretrained(
            folder,
            dtype=torch.float32 if device == "cpu" else "auto",
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError("the model cannot be loaded", where=folder, got=error) from error
    if info["missing_keys"]:
        # transformers initializes these newly and only logs it.
        raise CheckpointError(
            "the checkpoint lacks tensors of its model: they would be random",
            where=folder,
            got="missing: " + ", ".join(sorted(info["missing_keys"])[:5]),
            hint="give a checkpoint of this kind of model, head included",
        )
    return model.to(device).eval()


class ChatTokenizer:
    """Turns chats into token ids.

    Args:
        tokenizer: A transformers tokenizer with a chat template.
        where: The checkpoint, for messages.
    """

    def __init__(self, tokenizer: Any, *, where: str) -> None:
        self._tokenizer = tokenizer
        self._where = where
        self._bos = tokenizer.bos_token_id
        plain = tokenizer("a").input_ids
        self._adds_bos = self._bos is not None and plain[:1] == [self._bos]

    def ids(self, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> list[int]:
        """Return the token ids of a chat, with one BOS where the model knows a BOS.

        Args:
            messages: The turns.
            add_generation_prompt: Whether to open the assistant's turn.

        Raises:
            CheckpointError: The tokenizer has no chat template.
            TableError: The template refuses this chat (its roles, their order).
        """
        if not self._tokenizer.chat_template:
            raise CheckpointError(
                "the tokenizer has no chat template",
                where=self._where,
                hint="add chat_template.jinja to the checkpoint",
            )
        try:
            encoding = self._tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                tokenize=True,
                return_dict=True,
            )
        except TemplateError as error:
            raise TableError(
                "the chat template refuses this chat", where=self._where, got=error
            ) from error
        ids = [int(token) for token in encoding["input_ids"]]
        return self._with_one_bos(ids)

    def _with_one_bos(self, ids: list[int]) -> list[int]:
        # A template may write BOS, the tokenizer may add one, or both or neither may.
        if self._bos is None:
            return ids
        start = 0
        while start < len(ids) and ids[start] == self._bos:
            start += 1
        return [self._bos, *ids[start:]] if start or self._adds_bos else ids
