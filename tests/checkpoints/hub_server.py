"""A local server that speaks the Hub's API: model information, resolve, ranges, redirects."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest

from tests.checkpoints.hub_uploads import TOKEN, HubUploads


class HubServer:
    """Serves folders as models and datasets; .safetensors come from a second origin."""

    def __init__(self) -> None:
        self.repos: dict[str, Path] = {}
        self.commits: dict[str, str] = {}
        self.past_commits: set[str] = set()
        """Still there, with the same files."""
        self.log: list[tuple[str, str, str | None]] = []
        """(method, path, Range)."""
        self.tokens_at_cdn: list[str | None] = []
        self.bytes_sent = 0
        self.fail_every = 0
        self.limits: list[dict[str, str]] = []
        """Headers of the refusals (429) that the next requests get."""
        self.ignore_ranges = False
        self.uploads = HubUploads()
        self._lock = threading.Lock()
        self._num_files = 0
        self._hub = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, is_cdn=False))
        self._cdn = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, is_cdn=True))
        self.url = f"http://127.0.0.1:{self._hub.server_port}"
        self.cdn_url = f"http://127.0.0.1:{self._cdn.server_port}"
        for server in (self._hub, self._cdn):
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

    def add(self, repo_id: str, folder: Path) -> str:
        """Offer a folder; returns its commit."""
        self.repos[repo_id] = folder
        self.commits[repo_id] = hashlib.sha1(f"{repo_id}{folder}".encode()).hexdigest()
        return self.commits[repo_id]

    def count(self, method: str, path: str) -> int:
        return sum(m == method and path in p for m, p, _ in self.log)

    def failing(self) -> bool:
        """Whether this request for bytes shall fail."""
        with self._lock:
            self._num_files += 1
            return self.fail_every > 0 and self._num_files % self.fail_every == 0

    def close(self) -> None:
        for server in (self._hub, self._cdn):
            server.shutdown()
            server.server_close()


def _handler(hub: HubServer, *, is_cdn: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # head and body go out as two writes

        def do_GET(self) -> None:
            self._answer()

        def do_HEAD(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            self._write()

        def do_PUT(self) -> None:
            self._write()

        def _write(self) -> None:
            hub.log.append((self.command, self.path, None))
            size = self.headers.get("Content-Length")
            body = self.rfile.read(int(size)) if size else self._chunks()
            self._send(*self._asked(body))

        def _asked(self, body: bytes = b"") -> tuple[int, bytes, dict[str, str]]:
            path, token = unquote(urlsplit(self.path).path), self.headers.get("Authorization")
            return hub.uploads.answer(hub, self.command, path, token, body)

        def _chunks(self) -> bytes:
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def _answer(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.log.append((self.command, self.path, self.headers.get("Range")))
            if hub.limits:
                self._send(429, b"", hub.limits.pop(0))
                return
            if is_cdn:
                hub.tokens_at_cdn.append(self.headers.get("Authorization"))
                self._file(Path(path), {})
                return
            if (found := self._asked())[0]:
                self._send(*found)
                return
            info = re.fullmatch(
                r"/api/(?:models|datasets)/([^/]+/[^/]+)(?:/revision/([^/]+))?", path
            )
            file = re.fullmatch(r"(?:/datasets)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
            match = info or file
            if match is None or match[1] not in hub.repos:
                self._send(404, b"", {"X-Error-Code": "RepoNotFound"})
                return
            commit = hub.commits[match[1]]
            if match[2] in hub.past_commits:
                commit = match[2]
            if match[2] not in (None, "main", commit):
                self._send(404, b"", {"X-Error-Code": "RevisionNotFound"})
                return
            folder = hub.repos[match[1]]
            if info:
                siblings = [
                    {"rfilename": p.relative_to(folder).as_posix(), "size": p.stat().st_size}
                    for p in sorted(folder.rglob("*"))
                    if p.is_file()
                ]
                table = {"id": match[1], "modelId": match[1], "sha": commit, "siblings": siblings}
                table["private"] = match[1] in hub.uploads.private
                self._send(200, json.dumps(table).encode(), {"Content-Type": "application/json"})
                return
            path = folder / file[3]
            if not path.is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            headers = {"X-Repo-Commit": commit, "ETag": f'"{file[3]}"'}
            if path.suffix != ".safetensors":
                self._file(path, headers)
                return
            # Large files: a redirect to a content network, as the Hub does.
            headers |= {"X-Linked-Size": str(path.stat().st_size), "X-Linked-ETag": '"x"'}
            self._send(302, b"", {**headers, "Location": f"{hub.cdn_url}{path}"})

        def _file(self, path: Path, headers: dict[str, str]) -> None:
            if hub.failing():
                self._send(503, b"", {})
                return
            data = path.read_bytes()
            wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            if wanted and not hub.ignore_ranges:
                first, last = int(wanted[1]), int(wanted[2])
                headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(data)}"}
                self._send(206, data[first : last + 1], headers)
                return
            self._send(200, data, headers)

        def _send(self, status: int, data: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                hub.bytes_sent += len(data)
                self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    return Handler


@contextmanager
def hub_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """Run the server and point this process to it."""
    hub = HubServer()
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    try:
        yield hub
    finally:
        hub.close()
