"""What is written down about one request; all times in seconds since second 0 of its point."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

import pyarrow as pa

from expo_ray.tables import Message

Phase = Literal["warmup", "ramp", "measured", "cooldown"]
"""Only measured requests enter the figures; the others put the service into its state."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One request to send."""

    request_id: int
    prompt_id: str
    messages: tuple[Message, ...]
    phase: Phase = "measured"
    max_tokens: int | None = None
    """Longest answer of this request; None takes that of the load test."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestRecord:
    """One request as the client saw it."""

    request_id: int
    prompt_id: str
    phase: Phase = "measured"
    intended_seconds: float
    """When it ought to have been sent; every latency counts from here."""
    sent_seconds: float
    """When the client began to send it."""
    token_seconds: tuple[float, ...] = ()
    """When each chunk with something generated arrived: thought, answer, call, refusal; a chunk
    may hold several tokens."""
    first_answer: int | None = 0
    """Which of them was the first of the answer, after the thoughts; None: there was none."""
    done_seconds: float
    """When the client was through with it, well or not."""
    input_tokens: int | None = None
    """From the server's usage, like `output_tokens`; None where it reports none."""
    output_tokens: int | None = None
    cached_tokens: int | None = None
    """Tokens of the prompt that came from a prefix cache, where the server tells."""
    reasoning_tokens: int | None = None
    """Output tokens that were thought, where the server tells."""
    unstreamed_tokens: int | None = 0
    """Output tokens that were counted and never sent, such as hidden thoughts. None: some were, and
    how many nobody can say."""
    replica: str | None = None
    """Which replica answered, where the server tells."""
    model: str | None = None
    """Who answered, as the response says it, like `system_fingerprint`."""
    system_fingerprint: str | None = None
    """Of `expo-ray serve` the digest of the weights."""
    finish_reason: str | None = None
    error: str | None = None
    """Class of the failure, None when fine: connect, timeout, http_NNN, mid_stream, malformed,
    truncated (the stream stopped without an end), other_weights (an answer by others than those
    measured), empty (it ended without any token)."""
    error_detail: str | None = None

    @property
    def ttft_seconds(self) -> float | None:
        """Time to first token, thoughts included."""
        return self.token_seconds[0] - self.intended_seconds if self.token_seconds else None

    @property
    def ttfat_seconds(self) -> float | None:
        """Time to first token of the answer; None where all of it was thought."""
        if self.first_answer is None or not self.token_seconds:
            return None
        return self.token_seconds[self.first_answer] - self.intended_seconds

    @property
    def streamed_tokens(self) -> int | None:
        """Output tokens that arrived in `token_seconds`."""
        if self.output_tokens is None or self.unstreamed_tokens is None:
            return None
        return self.output_tokens - self.unstreamed_tokens

    @property
    def e2el_seconds(self) -> float | None:
        """End-to-end latency: to the last text, not to the closing of the stream."""
        return self.token_seconds[-1] - self.intended_seconds if self.token_seconds else None

    @property
    def tpot_seconds(self) -> float | None:
        """Mean time per token that was sent after the first; None below two tokens."""
        if not self.token_seconds or self.streamed_tokens is None or self.streamed_tokens < 2:
            return None
        return (self.token_seconds[-1] - self.token_seconds[0]) / (self.streamed_tokens - 1)

    def as_row(self, *, point: int) -> dict[str, Any]:
        """Return the row of requests.parquet."""
        return {"point": point, **asdict(self)}


REQUESTS_SCHEMA = pa.schema(
    [
        ("point", pa.int32()),
        ("request_id", pa.int64()),
        ("prompt_id", pa.string()),
        ("phase", pa.string()),
        ("intended_seconds", pa.float64()),
        ("sent_seconds", pa.float64()),
        ("token_seconds", pa.list_(pa.float64())),
        ("first_answer", pa.int64()),
        ("done_seconds", pa.float64()),
        ("input_tokens", pa.int64()),
        ("output_tokens", pa.int64()),
        ("cached_tokens", pa.int64()),
        ("reasoning_tokens", pa.int64()),
        ("unstreamed_tokens", pa.int64()),
        ("replica", pa.string()),
        ("model", pa.string()),
        ("system_fingerprint", pa.string()),
        ("finish_reason", pa.string()),
        ("error", pa.string()),
        ("error_detail", pa.string()),
    ]
)
