"""What a service goes through: overload, clients that stall or vanish, a killed replica, hours."""

import asyncio
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from expo_ray.serving import ModelSource, ServedModel, generator, served_model

MAX_REQUESTS = 8


@pytest.fixture(scope="module")
def served(ray_cluster: str, pico_pair: tuple[Path, Path]) -> Iterator[ServedModel]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(served_model, "_MAX_WAITING_REQUESTS", 0)
        patch.setattr(generator, "MAX_BATCH_ROWS", MAX_REQUESTS // 2)
        with ServedModel(ModelSource(model=str(pico_pair[1]))) as served:
            yield served


def body(served: ServedModel, **changes: object) -> dict[str, object]:
    return {"model": served.model, "prompt": "x", "max_tokens": 8, "seed": 1, **changes}


def works(served: ServedModel) -> bool:
    """The next request, once whoever was cancelled has left."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        answer = httpx.post(f"{served.url}/v1/completions", json=body(served), timeout=60)
        if answer.status_code == 200:
            return bool(answer.json()["usage"]["completion_tokens"])
        assert answer.status_code in (500, 503)
        time.sleep(0.1)
    return False


def replica_process(served: ServedModel) -> psutil.Process:
    [found] = [
        process
        for process in psutil.process_iter(["cmdline"])
        if f"ServeReplica:{served.app_name}:" in " ".join(process.info["cmdline"] or ())
    ]
    return found


async def flood(served: ServedModel, num_requests: int, **changes: object) -> list[httpx.Response]:
    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as many:
        asked = body(served, **changes)
        posts = (many.post(f"{served.url}/v1/completions", json=asked) for _ in range(num_requests))
        return await asyncio.gather(*posts)


def test_overload_is_refused_at_once_and_passes(served: ServedModel) -> None:
    asyncio.run(flood(served, 60, max_tokens=200))
    process = replica_process(served)
    rss_bytes = process.memory_info().rss
    answers = [a for _ in range(3) for a in asyncio.run(flood(served, 100, max_tokens=200))]
    assert process.memory_info().rss <= rss_bytes + 16 * 1024 * 1024
    assert {a.status_code for a in answers} == {200, 503}
    refused = [a for a in answers if a.status_code == 503]
    assert all(a.headers["retry-after"] == "1" for a in refused)
    assert {a.json()["error"]["code"] for a in refused} == {"overloaded"}
    # Serve itself refuses what thousands send at once, in its own words but with the same header.
    deployment = served.bind()._bound_deployment
    assert deployment.backpressure_config.retry_after_s == 1
    assert works(served)


def test_a_huge_body_is_refused(served: ServedModel) -> None:
    asked = json.dumps(body(served, prompt="x" * (17 << 20))).encode()
    answer = httpx.post(f"{served.url}/v1/completions", content=asked, timeout=60)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")

    def pieces() -> Iterator[bytes]:  # without a content-length
        for _ in range(40):
            yield b" " * (1 << 20)

    answer = httpx.post(f"{served.url}/v1/completions", content=pieces(), timeout=60)
    assert answer.status_code == 413
    # A client that reads only when it has sent everything finds the answer, too.
    parts = urlsplit(served.url)
    with socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=60) as late:
        head = (
            f"POST {parts.path}/v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Length: {40 << 20}\r\nConnection: close\r\n\r\n"
        )
        late.sendall(head.encode() + b" " * (40 << 20))
        assert late.recv(12) == b"HTTP/1.1 413"
    assert works(served)


def test_clients_that_stall_vanish_or_read_slowly(served: ServedModel) -> None:
    parts = urlsplit(served.url)
    asked = json.dumps(body(served, stream=True, max_tokens=200)).encode()
    head = (
        f"POST {parts.path}/v1/completions HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(asked)}\r\n\r\n"
    ).encode()

    def connect() -> socket.socket:
        return socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=30)

    for _ in range(MAX_REQUESTS):
        with connect() as vanishing:  # amid the headers, the body, the stream
            vanishing.sendall(head[:20])
        with connect() as vanishing:
            vanishing.sendall(head + asked[:10])
        with connect() as vanishing:
            vanishing.sendall(head + asked)
            assert vanishing.recv(12) == b"HTTP/1.1 200"
    with connect() as slow:
        slow.sendall(head + asked)
        start = slow.recv(64)
        time.sleep(0.5)
        assert works(served), "a slow reader holds nobody up"
        rest = b""
        while not rest.endswith(b"0\r\n\r\n"):
            rest += slow.recv(256)
    assert (start + rest).count(b"[DONE]") == 1


def test_a_replica_killed_under_load(served: ServedModel) -> None:
    async def kill_amid() -> list[int]:
        asked = asyncio.create_task(flood(served, MAX_REQUESTS - 1, max_tokens=200))
        await asyncio.sleep(0.3)
        replica_process(served).kill()
        return [answer.status_code for answer in await asked]

    # In flight: answered before, refused by name, or sent to the next replica; never silent.
    assert set(asyncio.run(kill_amid())) <= {200, 500, 503}
    assert works(served)


def test_a_short_soak_grows_nothing(served: ServedModel) -> None:
    assert works(served)
    process = replica_process(served)

    async def mixed(num_rounds: int) -> None:
        async with httpx.AsyncClient(timeout=60) as client:
            url = f"{served.url}/v1/completions"
            for _ in range(num_rounds):
                posts = [client.post(url, json=body(served)) for _ in range(3)]
                posts += [client.post(url, content=b"{"), client.post(url, json={"model": "none"})]
                await asyncio.gather(*posts)
                async with client.stream("POST", url, json=body(served, stream=True)) as stream:
                    await anext(stream.aiter_bytes())

    asyncio.run(mixed(40))
    files, rss_bytes = process.num_fds(), process.memory_info().rss
    asyncio.run(mixed(80))
    assert process.num_fds() <= files + 5
    assert process.memory_info().rss <= rss_bytes + 16 * 1024 * 1024
