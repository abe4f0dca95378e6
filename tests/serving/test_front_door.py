"""Who may come in: names, origins, keys, sizes and seconds, on the ASGI application itself."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from expo_ray.serving.front_door import FrontDoor, ServiceSettings, key_digest

KEY = "sk-pico"
OPEN = ServiceSettings(host="10.1.2.3", allowed_hosts=("My.Example",))
WILD = ServiceSettings(host="0.0.0.0")
LOCKED = ServiceSettings(api_key_digest=key_digest(KEY))


async def inner(scope: Any, receive: Any, send: Any) -> None:
    """Answer with what came in."""
    body = (await receive())["body"] if scope["method"] == "POST" else b""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(len(body)).encode()})


def ask(
    settings: ServiceSettings, method: str = "GET", path: str = "/v1/models", **how: Any
) -> Any:
    limits = how.pop("limits", {})

    async def run() -> httpx.Response:
        door = FrontDoor(inner, lambda: settings, **limits)
        transport = httpx.ASGITransport(door)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.request(method, path, **how)

    return asyncio.run(run())


def code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


@pytest.mark.parametrize(
    "host",
    ["localhost:8000", "127.0.0.1", "[::1]:99", "LOCALHOST.", "10.1.2.3:8000", "my.example:1"],
)
def test_own_names_are_answered(host: str) -> None:
    assert ask(OPEN, headers={"Host": host}).status_code == 200
    origin = {"Host": host, "Origin": f"http://{host}"}
    assert ask(OPEN, headers=origin).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "10.1.2.4", "127.0.0.1.nip.io", "", "[::"]
)
def test_other_names_are_refused_where_no_key_is_set(host: str) -> None:
    assert code(ask(OPEN, headers={"Host": host})) == (403, "host_not_allowed")
    keyed = {"Host": host, "Authorization": f"Bearer {KEY}"}
    assert ask(LOCKED, headers=keyed).status_code == 200
    assert ask(OPEN, path="/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "https://localhost.evil", "http://203.0.113.5"]
)
def test_pages_of_others_are_refused(origin: str) -> None:
    for settings in (OPEN, WILD):
        answer = ask(settings, "POST", headers={"Origin": origin}, json={})
        assert code(answer) == (403, "origin_not_allowed")


def test_on_all_addresses_any_address_is_a_name_but_no_foreign_one() -> None:
    for host in ("192.168.7.7:8000", "[fe80::1]", "localhost"):
        assert ask(WILD, headers={"Host": host}).status_code == 200
    assert code(ask(WILD, headers={"Host": "evil.example"})) == (403, "host_not_allowed")


async def endless(read: list[int]) -> AsyncIterator[bytes]:
    for number in range(1 << 20):
        read.append(number)
        yield b"x" * 1000


def test_the_key_comes_first_and_nothing_of_the_body_is_read() -> None:
    read: list[int] = []

    async def receive() -> Any:
        read.append(1)
        return {"type": "http.request", "body": b"x", "more_body": True}

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "headers": [(b"host", b"localhost"), (b"content-type", b"text/plain")],
    }
    asyncio.run(FrontDoor(inner, lambda: LOCKED)(scope, receive, send))
    assert (sent[0]["status"], read) == (401, [])
    assert json.loads(sent[1]["body"])["error"]["code"] == "invalid_api_key"
    for path in ("/v1/models/health", "/health/", "/v1/nowhere", "/"):
        assert code(ask(LOCKED, path=path)) == (401, "invalid_api_key")
    for header in ("", "Bearer", "Bearer sk-other", f"Basic {KEY}", KEY, f"Bearer {KEY} x"):
        assert ask(LOCKED, headers={"Authorization": header}).status_code == 401
    assert ask(LOCKED, path="/health").status_code == 200


def test_a_body_has_an_end_in_bytes_and_in_seconds() -> None:
    limits = {"max_body_bytes": 10, "body_seconds": 60.0}
    typed = {"Content-Type": "application/json"}
    assert ask(WILD, "POST", headers=typed, content=b"x" * 10, limits=limits).text == "10"
    for headers in (typed, {**typed, "Content-Length": "9" * 5000}):
        answer = ask(WILD, "POST", headers=headers, content=b"x" * 11, limits=limits)
        assert code(answer) == (413, "body_too_large")
    read: list[int] = []
    assert ask(WILD, "POST", headers=typed, content=endless(read), limits=limits).status_code == 413
    assert len(read) < 10

    async def stalled() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(3600)

    limits = {"max_body_bytes": 10, "body_seconds": 0.05}
    answer = ask(WILD, "POST", headers=typed, content=stalled(), limits=limits)
    assert (code(answer), answer.headers["connection"]) == ((408, "timeout"), "close")


def test_a_body_is_json() -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = ask(WILD, "POST", headers={"Content-Type": kind}, content=b"{}")
        assert code(answer) == (400, "invalid_content_type")
