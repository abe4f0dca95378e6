"""A real little HTTP proxy that writes down what comes: absolute GET and POST, and CONNECT."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit


@dataclass(kw_only=True)
class ProxyServer:
    url: str = ""
    """With a password, as companies have it."""
    asked: list[str] = field(default_factory=list)
    """First lines of the requests."""
    heads: list[bytes] = field(default_factory=list)
    answers_for: dict[str, str] = field(default_factory=dict)
    """By a host that only the proxy knows: the URL of the service that answers for it."""

    def handle(self, client: socket.socket) -> None:
        with client:
            head = b""
            while b"\r\n\r\n" not in head and (block := client.recv(65536)):
                head += block
            if not head:
                return
            line = head.split(b"\r\n", 1)[0].decode()
            self.asked.append(line)
            self.heads.append(head)
            verb, target, _ = line.split(" ")
            place = self.answers_for.get(urlsplit(target).hostname or "")
            if place is None or verb == "CONNECT":
                client.sendall(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n")
                return
            parts, there = urlsplit(target), urlsplit(place)
            path = parts.path + (f"?{parts.query}" if parts.query else "")
            rest = head.split(b"\r\n", 1)[1]
            with socket.create_connection((there.hostname, there.port or 80)) as service:
                service.sendall(f"{verb} {path} HTTP/1.1\r\nConnection: close\r\n".encode() + rest)
                # The body may come after the head, in as many pieces as it likes.
                threading.Thread(target=pass_on, args=(client, service), daemon=True).start()
                pass_on(service, client)


def pass_on(source: socket.socket, target: socket.socket) -> None:
    """Send on what comes, until either side is closed."""
    with contextlib.suppress(OSError):
        while block := source.recv(65536):
            target.sendall(block)


@contextmanager
def running_proxy() -> Iterator[ProxyServer]:
    """Listen until the block ends."""
    proxy = ProxyServer()
    listener = socket.create_server(("127.0.0.1", 0))
    proxy.url = f"http://user:pass%40word@127.0.0.1:{listener.getsockname()[1]}"

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=proxy.handle, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield proxy
    finally:
        # Closing alone does not wake a thread that accepts.
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
