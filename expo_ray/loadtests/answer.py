"""What a streamed chat completion says, event by event, and why it failed if it did."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from expo_ray.loadtests.records import Job, RequestRecord
from expo_ray.redaction import redacted

_MAX_DETAIL_CHARACTERS = 300


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
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    replica: str | None = None
    model: str | None = None
    system_fingerprint: str | None = None
    finish_reason: str | None = None
    ended: bool = False

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
            self._read(json.loads(data), seconds)
        except (ValueError, TypeError, AttributeError) as error:
            raise StreamError("malformed", f"not a completion chunk: {data[:100]!r}") from error

    def _read(self, event: dict[str, Any], seconds: float) -> None:
        if event.get("error"):
            raise StreamError("mid_stream", json.dumps(event["error"]))
        self.model = self.model or event.get("model")
        # vLLM names it in the last chunk alone.
        self.system_fingerprint = event.get("system_fingerprint") or self.system_fingerprint
        usage = event.get("usage")
        if usage:
            self.input_tokens = usage.get("prompt_tokens")
            self.output_tokens = usage.get("completion_tokens")
            self.cached_tokens = (usage.get("prompt_tokens_details") or {}).get("cached_tokens")
        for choice in event.get("choices") or ():
            if (choice.get("delta") or {}).get("content"):
                self.token_seconds.append(seconds)
            if choice.get("finish_reason"):
                self.finish_reason = choice["finish_reason"]
                self.ended = True

    def check(self, *, model: str, weights_digest: str | None) -> None:
        """Check that the stream came to its end, from the weights that are measured, and held text.

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
            done_seconds=done_seconds,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            cached_tokens=self.cached_tokens,
            replica=self.replica,
            model=self.model,
            system_fingerprint=self.system_fingerprint,
            finish_reason=self.finish_reason,
            error=failure and failure[0],
            error_detail=failure and redacted(failure[1])[:_MAX_DETAIL_CHARACTERS],
        )
