"""What one streamed delta holds: thought, answer, or nothing that was generated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

_THOUGHT_FIELDS: Final = ("reasoning_content", "reasoning", "thinking")
_ANSWER_FIELDS: Final = ("content", "refusal")
_THOUGHT_PARTS: Final = ("thinking", "reasoning")


@dataclass(frozen=True, kw_only=True, slots=True)
class Generated:
    """How much of each kind; bytes bound the number of tokens from above."""

    thought_bytes: int = 0
    answer_bytes: int = 0
    call_bytes: int = 0
    """Names and arguments of calls, a part of the answer; their markup is not sent."""
    text: str = field(default="", compare=False)
    """Of the answer, as it is sent; of a service without a parser thoughts and their tags, too."""


def generated(delta: Mapping[str, Any]) -> Generated:
    """Return what a delta adds to the answer; a role, an id or an empty text adds nothing.

    Args:
        delta: `choices[i].delta` of a chunk: OpenAI's fields, and those in which vLLM, SGLang,
            DeepSeek, OpenRouter and Mistral send what a model thinks before it answers.
    """
    parts = [part for part in _listed(delta.get("content")) if isinstance(part, dict)]
    thoughts = [delta.get(name) for name in _THOUGHT_FIELDS]
    thoughts += [part for part in parts if part.get("type") in _THOUGHT_PARTS]
    answers = [delta.get(name) for name in _ANSWER_FIELDS if isinstance(delta.get(name), str)]
    answers += [part for part in parts if part.get("type") not in _THOUGHT_PARTS]
    audio = delta.get("audio")
    if isinstance(audio, dict):
        # The sound of a transcript that is sent beside it is no further token.
        answers.append(audio.get("transcript") or audio.get("data"))
    calls = [_call(call.get("function")) for call in _listed(delta.get("tool_calls"))]
    calls.append(_call(delta.get("function_call")))
    call_bytes = _bytes(calls)
    # Some services send the same thought under two names.
    return Generated(
        thought_bytes=max(map(_bytes, thoughts), default=0),
        answer_bytes=_bytes(answers) + call_bytes,
        call_bytes=call_bytes,
        text="".join(answer for answer in answers if isinstance(answer, str)),
    )


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _call(function: Any) -> list[Any]:
    return [function.get("name"), function.get("arguments")] if isinstance(function, dict) else []


def _bytes(value: Any) -> int:
    return sum(len(text.encode(errors="replace")) for text in _texts(value))


def _texts(value: Any) -> Iterator[str]:
    """Yield every text in a value, but for what names the kind of a part."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
    elif isinstance(value, dict):
        for name, one in value.items():
            if name != "type":
                yield from _texts(one)
