"""What a stream says of itself, chunk by chunk."""

from __future__ import annotations

import json

import pytest

from expo_ray.loadtests.answer import Answer, StreamError


def test_a_fingerprint_that_only_the_last_chunk_bears_is_read() -> None:
    # As vLLM does where usage is asked for.
    answer = Answer()
    for event in (
        {"model": "m", "choices": [{"delta": {"content": "hello"}}]},
        {"model": "m", "choices": [{"delta": {}, "finish_reason": "stop"}]},
        {"model": "m", "choices": [], "usage": {}, "system_fingerprint": "others"},
    ):
        answer.add(json.dumps(event).encode(), 1.0)
    assert (answer.model, answer.system_fingerprint) == ("m", "others")
    with pytest.raises(StreamError, match="others answered instead of m with measured") as error:
        answer.check(model="m", weights_digest="measured")
    assert error.value.kind == "other_weights"
