"""A real S3 protocol server on this machine, and a proxy before it that fails now and then."""

from __future__ import annotations

import http.client
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

BUCKET = "models"
HOP_HEADERS = ("Transfer-Encoding", "Content-Length", "Expect", "Connection")


@contextmanager
def s3_server() -> Iterator[str]:
    """Run the server; yields its URL, with the bucket made."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        url = f"http://127.0.0.1:{server.get_host_and_port()[1]}"
        client(url).create_bucket(Bucket=BUCKET)
        yield url
    finally:
        server.stop()


def settings(url: str) -> dict[str, str]:
    """The environment that points to it."""
    return {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "key-of-tests",
        "AWS_SECRET_ACCESS_KEY": "secret-of-tests",
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def use(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name, value in settings(url).items():
        monkeypatch.setenv(name, value)


def client(url: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=url,
        region_name="us-east-1",
        aws_access_key_id="key-of-tests",
        aws_secret_access_key="secret-of-tests",
    )


def upload(url: str, folder: Path, prefix: str) -> str:
    """Put a folder into the bucket and return its URI."""
    s3 = client(url)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            key = f"{prefix}/{path.relative_to(folder).as_posix()}"
            s3.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
    return f"s3://{BUCKET}/{prefix}"


def objects(url: str, prefix: str) -> dict[str, bytes]:
    """Everything below a prefix, by name."""
    s3 = client(url)
    found = s3.list_objects_v2(Bucket=BUCKET, Prefix=prefix + "/").get("Contents", [])
    return {
        entry["Key"][len(prefix) + 1 :]: s3.get_object(Bucket=BUCKET, Key=entry["Key"])[
            "Body"
        ].read()
        for entry in found
        if not entry["Key"].endswith("/")
    }


class FailingProxy:
    """Passes requests on and answers every nth one with an error of its own."""

    def __init__(self, target: str, *, every: int) -> None:
        host = target.removeprefix("http://")
        self.num_requests = 0
        self.num_failed = 0
        self.log: list[str] = []
        lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # head and body go out as two writes

            def do_any(self) -> None:
                body = self._body()
                with lock:
                    proxy.num_requests += 1
                    failing = every > 0 and proxy.num_requests % every == 0
                    proxy.num_failed += failing
                    proxy.log.append(f"{self.command} {self.path}")
                if failing:
                    self.send_response(503)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                upstream = http.client.HTTPConnection(host, timeout=60)
                headers = {k: v for k, v in self.headers.items() if k.title() not in HOP_HEADERS}
                upstream.request(self.command, self.path, body, headers)
                answer = upstream.getresponse()
                data = answer.read()
                self.send_response(answer.status)
                for name, value in answer.getheaders():
                    if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                        self.send_header(name, value)
                size = answer.getheader("Content-Length") if self.command == "HEAD" else len(data)
                self.send_header("Content-Length", str(size or 0))
                self.end_headers()
                self.wfile.write(data)
                upstream.close()

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") != "chunked":
                    return self.rfile.read(int(self.headers.get("Content-Length") or 0))
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = do_any

            def log_message(self, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
