"""Connections that do not say what they want are closed; others are not."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from expo_ray.serving.header_limit import close_without_header

SECONDS = 1.0
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n"


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    """Read the body, then answer."""
    while (await receive()).get("more_body"):
        pass
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}
    )
    await send({"type": "http.response.body", "body": b"ok"})


@pytest.fixture(params=[H11Protocol, HttpToolsProtocol])
def address(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    class Protocol(request.param):  # type: ignore[misc, name-defined]
        """Of this test alone: what is set in it stays in it."""

    close_without_header(Protocol, SECONDS)
    config = uvicorn.Config(
        app, http=Protocol, lifespan="off", log_level="error", timeout_keep_alive=30
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])))
        thread.start()
        try:
            yield listening.getsockname()
        finally:
            server.should_exit = True
            thread.join()


@contextlib.contextmanager
def connection(address: tuple[str, int]) -> Iterator[socket.socket]:
    with socket.create_connection(address, timeout=60) as client:
        yield client


def answer(client: socket.socket) -> bytes:
    told = b""
    while not told.endswith(b"ok") and (part := client.recv(1000)):
        told += part
    return told


@pytest.mark.parametrize("sent", [b"", b"GET / HT", GET[:-2]])
def test_a_connection_without_a_whole_header_is_closed(
    address: tuple[str, int], sent: bytes
) -> None:
    with connection(address) as client:
        client.sendall(sent)
        assert client.recv(100) == b""


def test_a_header_that_comes_byte_by_byte_has_the_same_time(address: tuple[str, int]) -> None:
    with connection(address) as client, contextlib.suppress(ConnectionError):
        for byte in b"GET / HTTP/1.1\r\nX: " + b"a" * 200:
            client.sendall(bytes([byte]))
            time.sleep(SECONDS / 10)
        raise AssertionError("still open")


def test_bodies_and_later_requests_have_their_own_time(address: tuple[str, int]) -> None:
    with connection(address) as client:
        client.sendall(POST)
        time.sleep(1.5 * SECONDS)  # a body that is late, and then an idle connection
        client.sendall(b"xx")
        assert answer(client).endswith(b"ok")
        time.sleep(1.5 * SECONDS)
        client.sendall(GET)
        assert answer(client).endswith(b"ok")
        client.sendall(GET[:9])
        assert client.recv(100) == b""
