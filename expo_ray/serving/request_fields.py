"""Which fields of a request an engine heeds: the rest is refused by name, never ignored.

A field that says nothing (null), that is harmless (`user`), or that holds the value which changes
nothing (`length_penalty: 1`) passes. Light: no torch, no ray.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from pydantic import BaseModel

from expo_ray.serving.api_error import ApiError

_HARMLESS = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prompt_cache_options",
        "request_id",
        "session_id",
        "parallel_tool_calls",
    }
)
"""They say who asks and how the answer is billed, kept or logged: not what it is."""

_NEUTRAL: dict[str, tuple[object, ...]] = {
    "add_special_tokens": (),
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": ([],),
    "best_of": (1,),
    "cache_salt": (),
    "chat_template": (),
    "add_generation_prompt": (),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "max_completion_tokens": (),
    "documents": ([],),
    "early_stopping": (False,),
    "echo": (False,),
    "extra_body": ({},),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "guided_choice": (),
    "guided_decoding_backend": (),
    "guided_grammar": (),
    "guided_json": (),
    "guided_regex": (),
    "guided_whitespace_pattern": (),
    "include_reasoning": (True,),
    "kv_transfer_params": (),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "logits_processors": ([],),
    "logprobs": (False,),
    "media_io_kwargs": ({},),
    "min_p": (0,),
    "min_tokens": (0,),
    "mm_processor_kwargs": ({},),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "priority": (0,),
    "prompt_logprobs": (),
    "reasoning_effort": (),
    "repetition_penalty": (1,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "structured_outputs": (),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "truncate_prompt_tokens": (),
    "typical_p": (1,),
    "use_beam_search": (False,),
    "verbosity": (),
    "vllm_xargs": ({},),
    "web_search_options": (),
}
"""Known fields that are not supported, with the values (besides null) that ask for nothing."""

_NEUTRAL_IN_TURN: dict[str, tuple[object, ...]] = {
    # What a client gets that sends back an answer as it came.
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "reasoning": (),
    "reasoning_content": (),
    "refusal": (),
    "tool_call_id": (),
    "tool_calls": ([],),
}
_NEUTRAL_IN_STREAM_OPTIONS = {"continuous_usage_stats": (False,), "include_obfuscation": (False,)}


def heeded_fields(body: Any, known: Collection[str]) -> Any:
    """Return a request without the fields that say nothing.

    Args:
        body: The JSON value of the request; what is no object is left to whoever validates it.
        known: Fields that are heeded.

    Raises:
        ApiError: A field is unknown, or asks for what is not supported.
    """
    return _heeded(body, known, _NEUTRAL, harmless=_HARMLESS)


def heeded_in_turn(turn: Any, known: Collection[str], prefix: str = "messages.") -> Any:
    """Return a turn of a chat without the fields that say nothing.

    Args:
        turn: The JSON value of a turn.
        known: Fields that are heeded.
        prefix: What stands before the name of a field that is refused.

    Raises:
        ApiError: A field is unknown, or asks for what is not supported.
    """
    return _heeded(turn, known, _NEUTRAL_IN_TURN, prefix=prefix)


def heeded_stream_options(options: Any, known: Collection[str]) -> Any:
    """Return `stream_options` without what says nothing.

    Args:
        options: The JSON value.
        known: Fields that are heeded.

    Raises:
        ApiError: A field is unknown, or asks for what is not supported.
    """
    return _heeded(options, known, _NEUTRAL_IN_STREAM_OPTIONS, prefix="stream_options.")


def refuse_extra(asked: BaseModel, prefix: str = "") -> None:
    """Refuse what a model that allows extra fields has taken in but will not heed.

    Args:
        asked: A validated request.
        prefix: What stands before the name of a field that is refused.

    Raises:
        ApiError: There is such a field.
    """
    if prefix:
        _heeded(asked.model_extra or {}, (), _NEUTRAL_IN_STREAM_OPTIONS, prefix=prefix)
    else:
        heeded_fields(asked.model_extra or {}, ())
    for name in type(asked).model_fields:
        if isinstance(part := getattr(asked, name), BaseModel):
            refuse_extra(part, f"{prefix}{name}.")


def _heeded(
    fields: Any,
    known: Collection[str],
    neutral: Mapping[str, tuple[object, ...]],
    *,
    harmless: Collection[str] = (),
    prefix: str = "",
) -> Any:
    if not isinstance(fields, dict):
        return fields
    heeded = {}
    for name, value in fields.items():
        if name in known:
            if value is not None:
                heeded[name] = value
        elif name in harmless:
            continue
        elif name not in neutral:
            raise ApiError(
                400,
                f"{prefix}{name}: there is no such field, or it is not supported here; "
                "leave it out",
                code="unknown_parameter",
                param=f"{prefix}{name}",
            )
        elif value is not None and not any(_is_same(value, one) for one in neutral[name]):
            raise ApiError(
                400,
                f"{prefix}{name}: not supported here{_allowed(neutral[name])}",
                code="invalid_value",
                param=f"{prefix}{name}",
            )
    return heeded


def _is_same(value: object, other: object) -> bool:
    # 1 and True are equal in Python, in JSON they are not.
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def _allowed(values: tuple[object, ...]) -> str:
    if not values:
        return "; leave it out"
    return f"; leave it out, or give {' or '.join(map(repr, values))}"
