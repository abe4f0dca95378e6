"""A judge of MT-Bench's answers: a real service that rates by fixed rules."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any, ClassVar


class Judge(BaseHTTPRequestHandler):
    """Rates 8 for the first turn, 6 for the second, and is silent where it is told to be."""

    asked: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        text = body["messages"][1]["content"]
        said = "Rating: [[8]]" if text.startswith("Why?") else "See [1]. Rating: [[6]], not [[2]]"
        said = "I pass." if "S-I-L-E-N-T" in text else said
        answer = {"choices": [{"message": {"content": said}}]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *args: object) -> None:
        pass


@contextmanager
def rating_judge() -> Iterator[int]:
    """Serve it on a free port of 127.0.0.1."""
    Judge.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
