from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator
from itertools import pairwise

import pytest

from expo_ray.loadtests.client import LoadClient
from expo_ray.loadtests.records import Job, RequestRecord
from expo_ray.loadtests.stream import Endpoint
from tests.loadtests.fake_service import FakeService, running_service


@pytest.fixture
def service() -> Iterator[FakeService]:
    with running_service() as running:
        yield running


def jobs(*orders: str) -> list[Job]:
    return [
        Job(request_id=i, prompt_id=f"p{i}", messages=({"role": "user", "content": order},))
        for i, order in enumerate(orders)
    ]


def send(
    url: str, *orders: str, concurrency: int = 1, timeout: float = 20.0
) -> list[RequestRecord]:
    client = LoadClient(Endpoint(url=url, model="fake"), {"max_tokens": 9}, timeout)
    sent = asyncio.run(
        client.run_closed(jobs(*orders), concurrency=concurrency, start_at=time.time())
    )
    return sorted(sent.records, key=lambda r: r.request_id)


def test_a_good_answer(service: FakeService) -> None:
    [record] = send(service.url, "tokens=4 wait=0.02")
    assert record.error is None
    assert (record.input_tokens, record.output_tokens) == (7, 4)
    assert record.finish_reason == "stop"
    assert len(record.token_seconds) == 4  # the role chunk and the usage chunk hold no text
    assert record.ttft_seconds is not None and record.ttft_seconds >= 0.02
    assert record.e2el_seconds is not None and record.e2el_seconds >= 0.08
    assert record.intended_seconds <= record.sent_seconds <= record.token_seconds[0]
    assert record.token_seconds[-1] <= record.done_seconds
    [body] = service.requests
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert (body["model"], body["max_tokens"]) == ("fake", 9)


@pytest.mark.parametrize(
    ("order", "kind"),
    [
        ("http_500", "http_500"),
        ("http_429", "http_429"),
        ("packed", "malformed"),
        ("endless event", "malformed"),
        ("cut", "mid_stream"),
        ("error", "mid_stream"),
        ("garbage", "malformed"),
        ("nonsense", "malformed"),
        ("stop", "truncated"),
        ("empty", "empty"),
    ],
)
def test_failures_are_classified(service: FakeService, order: str, kind: str) -> None:
    bad, good = send(service.url, order, "tokens=2")
    assert bad.error == kind
    assert bad.error_detail
    assert good.error is None


@pytest.mark.parametrize(
    ("names_itself", "measured", "error"),
    [
        ({"model": "fake", "system_fingerprint": "d1"}, "d1", None),
        ({"model": "fake", "system_fingerprint": "d2"}, "d1", "other_weights"),
        ({"model": "fake@alpha=0.5", "system_fingerprint": "d1"}, "d1", "other_weights"),
        ({}, "d1", None),  # it does not say
        ({"model": "fake-2025", "system_fingerprint": "fp"}, None, None),  # a name for another
    ],
)
def test_an_answer_by_other_weights_than_those_measured_has_failed(
    service: FakeService, names_itself: dict[str, str], measured: str | None, error: str | None
) -> None:
    service.names_itself = names_itself
    endpoint = Endpoint(url=service.url, model="fake", weights_digest=measured)
    client = LoadClient(endpoint, {}, 20.0)
    sent = asyncio.run(client.run_closed(jobs("tokens=1"), concurrency=1, start_at=time.time()))
    [record] = sent.records
    assert record.error == error
    told = {"model": record.model, "system_fingerprint": record.system_fingerprint}
    assert {name: value for name, value in told.items() if value is not None} == names_itself


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
def test_thoughts_are_tokens_and_the_answer_comes_after_them(
    service: FakeService, field: str
) -> None:
    [record] = send(service.url, f"thoughts=20 as={field} tokens=5 usage=25 wait=0.02")
    assert record.error is None
    assert (len(record.token_seconds), record.first_answer) == (25, 20)
    assert record.ttft_seconds is not None and record.ttfat_seconds is not None
    # The server waits 20 ms before each chunk: the clock may not say less, and thoughts take 0.4 s.
    assert record.ttfat_seconds - record.ttft_seconds >= 0.35
    assert record.tpot_seconds is not None and record.tpot_seconds >= 0.015


def test_an_answer_that_is_all_thought_is_not_empty(service: FakeService) -> None:
    [record] = send(service.url, "thoughts=3 as=reasoning tokens=0 usage=3")
    assert (record.error, record.first_answer, record.ttfat_seconds) == (None, None, None)
    assert record.ttft_seconds is not None


@pytest.mark.parametrize(
    ("order", "streamed"),
    [
        ("tokens=5 usage=25 hidden=20", 5),  # thought in secret, and told
        ("tokens=5 usage=5 hidden=20", 5),  # told, and counted apart
        ("tokens=5 usage=25", None),  # 15 bytes are not 25 tokens
        ("tokens=5 usage=6", 6),  # the end of the turn is a token
        ("thoughts=20 as=reasoning tokens=5 usage=5", None),  # thoughts sent and not counted
        ("thoughts=4 as=reasoning tokens=5 usage=305 hidden=300", None),  # only a summary was sent
        ("thoughts=20 as=reasoning tokens=5 usage=25 hidden=20", 25),
    ],
)
def test_time_per_token_divides_by_what_was_sent(
    service: FakeService, order: str, streamed: int | None
) -> None:
    [record] = send(service.url, order)
    assert record.error is None
    assert record.streamed_tokens == streamed
    if streamed is None:
        assert record.tpot_seconds is None
    else:
        span = record.token_seconds[-1] - record.token_seconds[0]
        assert record.tpot_seconds == span / (streamed - 1)


def test_time_limit(service: FakeService) -> None:
    [record] = send(service.url, "hang", timeout=0.3)
    assert record.error == "timeout"


def test_nobody_listens() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        [record] = send(f"http://127.0.0.1:{taken.getsockname()[1]}", "tokens=1")
    assert record.error == "connect"


def test_a_service_without_usage_leaves_token_counts_unknown(service: FakeService) -> None:
    service.usage = False
    [record] = send(service.url, "tokens=3")
    assert record.error is None
    assert (record.output_tokens, record.tpot_seconds) == (None, None)


def test_closed_loop_keeps_the_given_number_in_flight(service: FakeService) -> None:
    records = send(service.url, *["tokens=2 wait=0.01"] * 12, concurrency=4)
    assert [r.request_id for r in records] == list(range(12))
    assert {r.error for r in records} == {None}
    assert service.most_in_flight == 4


def test_closed_loop_request_is_due_when_the_one_before_ended(service: FakeService) -> None:
    records = send(service.url, *["tokens=2"] * 3)
    assert records[0].intended_seconds == 0
    for before, after in pairwise(records):
        assert after.intended_seconds == before.done_seconds


def test_open_loop_counts_waiting_in_the_server(service: FakeService) -> None:
    # Ten requests are due within 9 ms; the server takes 30 ms for each, one at a time. A closed
    # loop would have reported 30 ms for all of them.
    service.one_at_a_time = True
    client = LoadClient(Endpoint(url=service.url, model="fake"), {}, 20.0)
    due = [i / 1000 for i in range(10)]
    sent = asyncio.run(
        client.run_open(jobs(*["tokens=1 wait=0.03"] * 10), due_seconds=due, start_at=time.time())
    )
    records = sent.records
    assert [r.intended_seconds for r in records] == due
    assert all(r.sent_seconds >= r.intended_seconds for r in records)
    latencies = sorted(r.e2el_seconds for r in records if r.e2el_seconds is not None)
    assert len(latencies) == 10
    for rank, latency in enumerate(latencies, start=1):
        assert latency >= rank * 0.03 - due[-1]
    assert service.most_in_flight > 1
    assert sent.loop_lag_seconds


def test_the_key_is_sent_and_never_shown(service: FakeService) -> None:
    endpoint = Endpoint(url=f"{service.url}/v1/", model="fake", api_key="secret-key")
    client = LoadClient(endpoint, {}, 20.0)
    sent = asyncio.run(client.run_closed(jobs("tokens=1"), concurrency=1, start_at=time.time()))
    assert sent.records[0].error is None
    assert service.headers[0]["Authorization"] == "Bearer secret-key"
    assert "secret-key" not in repr(endpoint)
