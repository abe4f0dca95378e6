"""Loading models whole, and chats as token ids with exactly one BOS.

Serving uses this as well, so that what is generated and what is scored are read alike. Weights are
read by ranges from wherever a checkpoint lies; transformers sees a local folder without any.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from jinja2 import TemplateError, meta
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
)

from expo_ray.checkpoints import Checkpoint
from expo_ray.checkpoints.local_files import local_folder
from expo_ray.errors import CheckpointError, TableError
from expo_ray.rewards.template_limits import limit_templates, require_bounded
from expo_ray.rewards.token_bound import max_chars_per_token, require_room
from expo_ray.tables.prompts import Message

WRITERS = (AutoModelForCausalLM, AutoModelForImageTextToText)
"""Auto classes of what writes text; of models that see images too, text alone is asked."""


def load_tokenizer(checkpoint: Checkpoint) -> Any:
    """Load the tokenizer of a checkpoint.

    Raises:
        CheckpointError: There is none, or its chat template does not come to an end.
    """
    folder = str(local_folder(checkpoint))
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise CheckpointError(
            "the tokenizer cannot be loaded", where=checkpoint.uri, got=error
        ) from error
    require_bounded(tokenizer, where=checkpoint.uri)
    limit_templates()
    return tokenizer


def tokenizer_digest(tokenizer: Any) -> str:
    """Return a digest of a tokenizer and its chat template: texts to token ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = sorted(tokenizer.get_vocab().items()) if backend is None else backend.to_str()
    what = (type(tokenizer).__name__, rules, tokenizer.special_tokens_map, tokenizer.chat_template)
    return hashlib.sha256(repr(what).encode()).hexdigest()[:16]


def load_pretrained(
    auto_class: Any,
    checkpoint: Checkpoint,
    weights: Iterable[tuple[str, torch.Tensor]],
    *,
    device: str,
    dtype: torch.dtype | None = None,
    allow_unexpected: bool = False,
) -> Any:
    """Load a model with every tensor given.

    Args:
        auto_class: A transformers auto class, or several: the first that knows the model.
        checkpoint: Whose config says which model it is.
        weights: (name, tensor); a checkpoint's own, or computed ones of the same names.
        device: "cpu" or "cuda".
        dtype: Compute in this dtype; None takes float32 on the CPU, else the weights' own.
        allow_unexpected: Leave out tensors that the model class does not have.

    Raises:
        CheckpointError: It cannot be loaded, or a tensor would be filled with random numbers.
    """
    # Converted one by one: the model takes these as they are, and no second copy is made.
    if dtype is None and device == "cpu":
        dtype = torch.float32
    state = {name: _in_dtype(tensor, dtype) for name, tensor in weights}
    try:
        config = AutoConfig.from_pretrained(local_folder(checkpoint), trust_remote_code=False)
        # The auto class wants a folder; the class that it picks also takes tensors in memory.
        classes = auto_class if isinstance(auto_class, tuple) else (auto_class,)
        chosen = next((c for c in classes if type(config) in c._model_mapping), classes[0])
        with torch.device("meta"):
            model_class = type(chosen.from_config(config, trust_remote_code=False))
        model, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=state,
            # Not by `model.to(dtype)` afterwards: that would round what a model derives from its
            # config as well, the frequencies of rotary positions for one.
            dtype="auto" if dtype is None else dtype,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            "the model cannot be loaded", where=checkpoint.uri, got=error
        ) from error
    # transformers initializes missing ones newly and only logs it.
    kinds = ("missing_keys",) if allow_unexpected else ("missing_keys", "unexpected_keys")
    wrong = {kind: sorted(info[kind]) for kind in kinds if info[kind]}
    if wrong:
        raise CheckpointError(
            "the tensors are not those of the model class",
            where=f"{checkpoint.uri}, {model_class.__name__}",
            got="; ".join(f"{kind}: {', '.join(keys[:3])}" for kind, keys in wrong.items()),
            hint="give a checkpoint of this kind of model, head included",
        )
    return model.to(device).eval()


def config_digest(checkpoint: Checkpoint) -> str:
    """Return a digest of the config: what decides a model's output beside weights and input."""
    text = json.dumps(checkpoint.config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def max_chat_tokens(model: Any) -> int | None:
    """Return how many tokens a model reads; None where its config does not say."""
    limit = max_positions(model.config)
    if limit is None:
        return None
    # RoBERTa and its kin count positions from behind their pad token.
    return limit - max(_first_position(name, part) for name, part in model.named_modules())


def max_positions(config: Any) -> int | None:
    """Return how many positions a model has by its config; None where that does not say."""
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def _first_position(name: str, part: torch.nn.Module) -> int:
    embeds_positions = name.endswith("position_embeddings") and isinstance(part, torch.nn.Embedding)
    padding = getattr(part, "padding_idx", None) if embeds_positions else None
    return 0 if padding is None else padding + 1


def num_token_ids(model: Any) -> int:
    """Return how many tokens a model has an embedding for."""
    return int(model.get_input_embeddings().weight.shape[0])


def _in_dtype(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    return tensor if dtype is None or not tensor.is_floating_point() else tensor.to(dtype)


def template_variables(tokenizer: Any) -> frozenset[str]:
    """Return what a chat template reads besides what every chat sets: messages, special tokens."""
    # The dialect that transformers reads has no public name.
    from transformers.utils.chat_template_utils import _compile_jinja_template

    source = tokenizer.get_chat_template()
    dialect = _compile_jinja_template(source).environment
    found = meta.find_undeclared_variables(dialect.parse(source))
    arguments = inspect.signature(tokenizer.apply_chat_template).parameters
    return frozenset(
        found - {"messages", *arguments, *tokenizer.special_tokens_map} - {*dialect.globals}
    )


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
        self.digest = tokenizer_digest(tokenizer)
        """Of all that decides how a chat is read."""
        self._adds_bos = self._bos is not None and plain[:1] == [self._bos]

    def ids(
        self,
        messages: Sequence[Message],
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
    ) -> list[int]:
        """Return the token ids of a chat, with one BOS where the model knows a BOS.

        Args:
            messages: The turns.
            add_generation_prompt: Whether to open the assistant's turn.
            continue_final_message: Whether to leave the last turn open.
            variables: What the template takes besides the chat, such as `enable_thinking`.
            max_tokens: Room for the chat: where it is certain to be longer it is not read.

        Raises:
            CheckpointError: The tokenizer has no chat template.
            TableError: A turn has no text, the template refuses the chat (roles, their order) or
                does not take a variable, or the chat cannot fit.
        """
        self.require_template()
        if not all(isinstance(message["content"], str) for message in messages):
            raise TableError("a turn has no text", where=self._where)
        if variables:
            self.require_variables(variables)
        how = {
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
            **(variables or {}),
        }
        num_chars = sum(len(message["content"]) for message in messages)
        if max_tokens is not None and num_chars > max_tokens * (self.chars_per_token or num_chars):
            # Only what the template leaves of a chat has to fit.
            num_chars = len(self._applied(messages, tokenize=False, **how))
            require_room(num_chars, max_tokens=max_tokens, chars_per_token=self.chars_per_token)
        encoding = self._applied(messages, tokenize=True, return_dict=True, **how)
        ids = [int(token) for token in encoding["input_ids"]]
        return self._with_one_bos(ids)

    def text_ids(self, text: str, *, max_tokens: int) -> list[int]:
        """Return the token ids of plain text.

        Args:
            text: Any.
            max_tokens: Room for it: where it is certain to be longer it is not read.

        Raises:
            TableError: It cannot fit.
        """
        require_room(len(text), max_tokens=max_tokens, chars_per_token=self.chars_per_token)
        ids: list[int] = self._tokenizer(text).input_ids
        return ids

    def text_of(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, special ones included."""
        return str(self._tokenizer.decode(ids, skip_special_tokens=False))

    @cached_property
    def chars_per_token(self) -> int | None:
        """Characters of a text that become one token at most; None where there is no such limit."""
        return max_chars_per_token(self._tokenizer)

    def require_variables(self, names: Iterable[str]) -> None:
        """Check that the chat template reads variables: it would ignore others.

        Raises:
            TableError: It does not, or they are set by other means.
        """
        wrong = sorted({*names} - template_variables(self._tokenizer))
        if wrong:
            raise TableError(
                "the chat template takes no such variable", where=self._where, got=", ".join(wrong)
            )

    def _applied(self, messages: Sequence[Message], **how: Any) -> Any:
        try:
            return self._tokenizer.apply_chat_template([dict(m) for m in messages], **how)
        except TemplateError as error:
            raise TableError(
                "the chat template refuses this chat", where=self._where, got=error
            ) from error
        except Exception as error:  # a template is a program, and raises what it likes
            raise TableError(
                "the chat template fails on this chat",
                where=self._where,
                got=f"{type(error).__name__}: {error}",
            ) from error

    def require_template(self) -> None:
        """Check that chats can be read.

        Raises:
            CheckpointError: The tokenizer has no chat template.
        """
        if not self._tokenizer.chat_template:
            raise CheckpointError(
                "the tokenizer has no chat template",
                where=self._where,
                hint="add chat_template.jinja to the checkpoint",
            )

    def _with_one_bos(self, ids: list[int]) -> list[int]:
        # A template may write BOS, the tokenizer may add one, or both or neither may.
        if self._bos is None:
            return ids
        start = 0
        while start < len(ids) and ids[start] == self._bos:
            start += 1
        return [self._bos, *ids[start:]] if start or self._adds_bos else ids
