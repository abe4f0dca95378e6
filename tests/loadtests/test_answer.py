"""What a stream says of itself, chunk by chunk."""

from __future__ import annotations

import json

import pytest

from expo_ray.loadtests.answer import Answer, StreamError
from expo_ray.loadtests.deltas import Generated, generated
from expo_ray.loadtests.records import Job


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


@pytest.mark.parametrize(
    ("delta", "expected"),
    [
        ({"role": "assistant", "content": ""}, Generated()),
        ({"role": "assistant", "content": None, "tool_calls": []}, Generated()),
        ({"content": "ab"}, Generated(answer_bytes=2)),
        ({"refusal": "no"}, Generated(answer_bytes=2)),
        ({"reasoning_content": "hm"}, Generated(thought_bytes=2)),
        ({"reasoning": "hm", "reasoning_content": "hm"}, Generated(thought_bytes=2)),
        (
            {"tool_calls": [{"index": 0, "id": "call_1", "function": {"name": "f"}}]},
            Generated(answer_bytes=1, call_bytes=1),
        ),
        ({"tool_calls": [{"index": 0, "function": {"arguments": ""}}]}, Generated()),
        ({"function_call": {"arguments": "{}"}}, Generated(answer_bytes=2, call_bytes=2)),
        ({"audio": {"id": "a", "transcript": "hi", "data": "UklGRg=="}}, Generated(answer_bytes=2)),
        ({"audio": {"id": "a", "data": "Ukl="}}, Generated(answer_bytes=4)),
        (
            {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
            Generated(thought_bytes=2),
        ),
        ({"content": [{"type": "text", "text": "abc"}]}, Generated(answer_bytes=3)),
    ],
)
def test_what_a_delta_holds(delta: dict[str, object], expected: Generated) -> None:
    assert generated(delta) == expected


@pytest.mark.parametrize(
    ("texts", "first_answer"),
    [
        (["<think>", "hm", "</think>", "\n\n", "Yes", "."], 4),
        (["hm", "</think>\n", "\nYes", "."], 2),  # the chat template had opened it
        (["<thi", "nk>hm</th", "ink>Yes"], 2),
        (["hm</think>Yes", "."], 0),
        (["[THINK]hm", "[/THINK]", "Yes"], 2),
        (["<think>", "hm"], None),
        (["Write `", "</think>", "` last."], 0),
        (["Sure. Here is my response:", " Yes."], 0),
        (["Yes", "."], 0),
    ],
)
def test_an_answer_begins_after_thoughts_that_are_sent_as_text(
    texts: list[str], first_answer: int | None
) -> None:
    answer = Answer()
    for second, text in enumerate(texts):
        chunk = {"choices": [{"delta": {"content": text}}]}
        answer.add(json.dumps(chunk).encode(), float(second))
    job = Job(request_id=1, prompt_id="p", messages=())
    record = answer.as_record(
        job, intended_seconds=0.0, sent_seconds=0.0, done_seconds=9.0, failure=None
    )
    assert record.first_answer == first_answer
    assert record.ttft_seconds == 0.0
    assert record.ttfat_seconds == first_answer


def test_a_count_that_is_none_is_not_taken_for_one() -> None:
    answer = Answer()
    usage = {"prompt_tokens": "7", "completion_tokens": 1e999, "reasoning_tokens": True}
    answer.add(json.dumps({"model": ["m"], "choices": [], "usage": usage}).encode(), 1.0)
    assert (answer.model, answer.input_tokens, answer.output_tokens) == (None, None, None)
    assert answer.reasoning_tokens is None
    with pytest.raises(StreamError, match="not a completion chunk"):
        answer.add(b'{"choices":' + b"[" * 100_000, 1.0)
