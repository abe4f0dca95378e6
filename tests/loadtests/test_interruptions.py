from __future__ import annotations

from typing import Any

from expo_ray.loadtests.interruptions import find_interruptions
from expo_ray.loadtests.records import RequestRecord
from tests.loadtests.test_metrics import record


def steady(first: int, start: float, end: float, replica: str, **more: Any) -> list[RequestRecord]:
    """One request after the other, half a second each with four texts, all on one replica."""
    return [
        record(
            first + i,
            intended_seconds=start + i / 2,
            sent_seconds=start + i / 2,
            token_seconds=tuple(start + i / 2 + 0.125 * n for n in range(1, 5)),
            done_seconds=start + (i + 1) / 2,
            output_tokens=4,
            replica=replica,
            **more,
        )
        for i in range(int(2 * (end - start)))
    ]


def test_steady_load_has_no_interruption() -> None:
    assert find_interruptions([*steady(0, 0, 20, "a"), *steady(100, 0, 20, "b")]) == []


def test_a_killed_replica_is_told_while_another_goes_on() -> None:
    dying = record(
        50,
        intended_seconds=5.0,
        sent_seconds=5.0,
        token_seconds=(5.125,),
        done_seconds=5.25,
        error="mid_stream",
        replica="a",
    )
    records = [
        *steady(0, 0, 5, "a"),
        dying,
        *steady(100, 0, 20, "b"),
        *steady(200, 9, 20, "c"),
    ]
    lost, failures = find_interruptions(records)
    assert lost == {
        "kind": "replica_lost",
        "start_seconds": 5.125,
        "end_seconds": 9.125,
        "text": "replica a answered no more after 5.1 s; c took its place 4.0 s later",
    }
    assert (failures["kind"], failures["start_seconds"]) == ("failures", 5.25)
    assert failures["text"] == "1 request failed at 5.2 s: mid_stream 1"
    [lost, _] = find_interruptions(records[:-22])
    assert lost["end_seconds"] is None
    assert lost["text"].endswith("no other took its place")


def test_silence_counts_against_what_a_request_usually_waits() -> None:
    stalled = record(
        40,
        intended_seconds=5.0,
        sent_seconds=5.0,
        token_seconds=(5.125, 8.0),
        done_seconds=8.0,
        output_tokens=2,
    )
    [silence] = find_interruptions([*steady(0, 0, 5, "a"), stalled, *steady(50, 8, 12, "a")])
    assert (silence["start_seconds"], silence["end_seconds"]) == (5.125, 8.0)
    assert silence["text"] == "no text for any request during 2.9 s, from 5.1 s to 8.0 s"
    slow = [
        record(
            i,
            intended_seconds=3.0 * i,
            sent_seconds=3.0 * i,
            token_seconds=(3.0 * i + 2.5, 3.0 * i + 3),
            done_seconds=3.0 * i + 3,
            output_tokens=2,
        )
        for i in range(10)
    ]
    assert find_interruptions(slow) == []  # a long prompt takes its time, every time


def test_answers_without_text_are_no_interruption() -> None:
    empty = record(
        99, intended_seconds=1.0, sent_seconds=1.0, done_seconds=1.5, error="empty", replica="a"
    )
    assert find_interruptions([*steady(0, 0, 5, "a"), empty]) == []
