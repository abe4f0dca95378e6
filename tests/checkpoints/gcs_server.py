"""A server that speaks Google's storage API, in a process of its own.

Not in a thread: pyarrow looks whether a file on gs:// is open by waiting for its first bytes, and
holds the interpreter's lock meanwhile, so that a server in the same process could never send them.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

BUCKET = "models"


@contextmanager
def gcs_server(log: Path) -> Iterator[str]:
    """Run the server, with the bucket made; yields its address.

    Args:
        log: File that gets a line per request: method, path and Range.
    """
    command = [sys.executable, "-m", __name__, str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def use(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", address)


def _serve(log: Path) -> None:
    from gcp_storage_emulator.handlers import buckets
    from gcp_storage_emulator.server import RequestHandler
    from gcp_storage_emulator.storage import Storage

    class Handler(RequestHandler):  # type: ignore[misc]
        def handle_one_request(self) -> None:
            # A reader that has what it wants hangs up.
            try:
                super().handle_one_request()
            except (BrokenPipeError, ConnectionResetError):
                self.close_connection = True

        def log_request(self, *_: object) -> None:
            with log.open("a") as file:
                file.write(f"{self.command} {self.path} {self.headers.get('Range')}\n")

    storage = Storage(use_memory_fs=True)
    buckets.create_bucket(BUCKET, storage)
    # The emulator's own server answers one request at a time, and pyarrow reads two at once.
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, storage))
    sys.stdout.write(f"{server.server_port}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
