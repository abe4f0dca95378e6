"""What a streamed chat completion says, event by event, and why it failed if it did."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from expo_ray.json_text import parse_json
from expo_ray.loadtests.deltas import Generated, generated
from expo_ray.loadtests.records import Job, RequestRecord
from expo_ray.redaction import redacted
from expo_ray.tables.thoughts import AUTO, TAGS

_MAX_DETAIL_CHARACTERS = 300
_MAX_COUNT = 2**53
_MARKED = tuple(tag for tag in TAGS if tag.closes[0].startswith(("<", "[")))
"""Tags that nobody writes by chance; the others are words."""
_UNSENT_TOKENS = 2
"""Ends of turns, which are counted and never sent."""
_UNSENT_MARKUP_TOKENS = 32
"""What stands around calls and thoughts, which parsers take out."""


class StreamError(Exception):
    """An answer that failed.

    Args:
        kind: Class of the failure, see `RequestRecord.error`.
        detail: What was seen.
    """

    def __init__(self, kind: str, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


@dataclass(kw_only=True, slots=True)
class Answer:
    """What has arrived of an answer so far."""

    token_seconds: list[float] = field(default_factory=list)
    first_answer: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None
    replica: str | None = None
    model: str | None = None
    system_fingerprint: str | None = None
    finish_reason: str | None = None
    ended: bool = False
    _thought_bytes: int = 0
    _answer_bytes: int = 0
    _has_calls: bool = False
    _texts: list[tuple[int, str]] = field(default_factory=list)
    """What was sent as text, and in which of the chunks."""

    def add(self, data: bytes, seconds: float) -> None:
        """Read the data of one server-sent event.

        Args:
            data: Without `data:`.
            seconds: When it arrived.

        Raises:
            StreamError: It reports a failure, or is no completion chunk.
        """
        if data == b"[DONE]":
            self.ended = True
            return
        try:
            self._read(parse_json(data), seconds)
        except (ValueError, TypeError, AttributeError) as error:
            raise StreamError("malformed", f"not a completion chunk: {data[:100]!r}") from error

    def _read(self, event: dict[str, Any], seconds: float) -> None:
        if event.get("error"):
            raise StreamError("mid_stream", json.dumps(event["error"]))
        self.model = self.model or _name(event.get("model"))
        # vLLM names it in the last chunk alone.
        self.system_fingerprint = _name(event.get("system_fingerprint")) or self.system_fingerprint
        if event.get("usage"):
            self._count(event["usage"])
        for choice in event.get("choices") or ():
            self._hear(generated(choice.get("delta") or {}), seconds)
            if choice.get("finish_reason"):
                self.finish_reason = str(choice["finish_reason"])
                self.ended = True

    def _count(self, usage: dict[str, Any]) -> None:
        self.input_tokens = _whole(usage.get("prompt_tokens"))
        self.output_tokens = _whole(usage.get("completion_tokens"))
        completion = usage.get("completion_tokens_details") or {}
        self.cached_tokens = _whole((usage.get("prompt_tokens_details") or {}).get("cached_tokens"))
        self.reasoning_tokens = _whole(
            completion.get("reasoning_tokens", usage.get("reasoning_tokens"))
        )

    def _hear(self, heard: Generated, seconds: float) -> None:
        if not heard.thought_bytes and not heard.answer_bytes:
            return
        if heard.answer_bytes and self.first_answer is None:
            self.first_answer = len(self.token_seconds)
        if heard.text:
            self._texts.append((len(self.token_seconds), heard.text))
        self.token_seconds.append(seconds)
        self._thought_bytes += heard.thought_bytes
        self._answer_bytes += heard.answer_bytes
        self._has_calls |= bool(heard.call_bytes)

    def _first_answer(self) -> int | None:
        """Return the chunk in which the answer began; None where all was thought.

        A service without a parser sends thoughts as text, with their tags; where the chat template
        opens them, with the closing tag alone.
        """
        if self._thought_bytes or self._has_calls:
            return self.first_answer
        whole = "".join(text for _, text in self._texts)
        found = AUTO.split(whole, known=_MARKED)
        if not found.start:
            return self.first_answer
        before = len(whole) - len(whole[found.start :].lstrip())
        for chunk, text in self._texts:
            before -= len(text)
            if before < 0:
                return chunk
        return None

    def _unstreamed_tokens(self) -> int | None:
        """Return how many of the output tokens were never sent; None where nobody can say.

        Services count what a model thinks and keep it to themselves, or send a summary. A token
        that was sent has a byte at least, and a chunk a token.
        """
        if self.output_tokens is None:
            return 0
        thought = self.reasoning_tokens or 0
        slack = _UNSENT_TOKENS
        if self._has_calls or self._thought_bytes:
            slack += _UNSENT_MARKUP_TOKENS
        hidden = 0 if self._thought_bytes else thought
        if hidden and len(self.token_seconds) > self.output_tokens - hidden + _UNSENT_TOKENS:
            hidden = 0  # counted beside the output, not in it
        sent = self.output_tokens - hidden
        is_summary = self._thought_bytes and thought > self._thought_bytes + slack
        is_more = sent > self._thought_bytes + self._answer_bytes + slack
        is_less = self._thought_bytes and len(self.token_seconds) > sent + _UNSENT_TOKENS
        return None if is_summary or is_more or is_less else hidden

    def check(self, *, model: str, weights_digest: str | None) -> None:
        """Check that the stream came to its end, from the weights that are measured, with tokens.

        Args:
            model: The one that was asked.
            weights_digest: Of the weights that are measured. None, of a service that tells none,
                leaves unchecked who answered: there a name may stand for another.

        Raises:
            StreamError: It did not.
        """
        if not self.ended:
            raise StreamError("truncated", "the stream stopped without finish_reason or [DONE]")
        told = {self.model: model, self.system_fingerprint: weights_digest}
        if weights_digest is not None and any(t not in (None, e) for t, e in told.items()):
            raise StreamError(
                "other_weights",
                f"{self.model} with weights {self.system_fingerprint} answered instead of {model} "
                f"with {weights_digest}",
            )
        if not self.token_seconds:
            raise StreamError("empty", "the answer has no text")

    def as_record(
        self,
        job: Job,
        *,
        intended_seconds: float,
        sent_seconds: float,
        done_seconds: float,
        failure: tuple[str, str] | None,
    ) -> RequestRecord:
        """Return the record of the request.

        Args:
            job: The request.
            intended_seconds: When it was due.
            sent_seconds: When the client began to send it.
            done_seconds: Now.
            failure: Class and detail; None when fine.
        """
        return RequestRecord(
            request_id=job.request_id,
            prompt_id=job.prompt_id,
            phase=job.phase,
            intended_seconds=intended_seconds,
            sent_seconds=sent_seconds,
            token_seconds=tuple(self.token_seconds),
            first_answer=self._first_answer(),
            done_seconds=done_seconds,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            cached_tokens=self.cached_tokens,
            reasoning_tokens=self.reasoning_tokens,
            unstreamed_tokens=self._unstreamed_tokens(),
            replica=self.replica,
            model=self.model,
            system_fingerprint=self.system_fingerprint,
            finish_reason=self.finish_reason,
            error=failure and failure[0],
            error_detail=failure and redacted(failure[1])[:_MAX_DETAIL_CHARACTERS],
        )


def _name(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _whole(value: Any) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_COUNT
    return value if is_count else None
