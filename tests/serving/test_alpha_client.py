"""A client whose change is led by a replica that dies meanwhile: what it says is what is served."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from expo_ray.errors import ServingError
from expo_ray.serving import alpha_client, set_alpha


@contextmanager
def service(*states: dict[str, Any] | None, status: int | None = None) -> Iterator[str]:
    """Answer a change with an error or not at all, and then tell one state after the other."""
    left = [*states]

    class Handler(BaseHTTPRequestHandler):
        def answer(self, code: int, body: object) -> None:
            self.send_response(code)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def do_POST(self) -> None:
            if status is not None:
                self.answer(status, {"error": {"message": "gone"}})

        def do_GET(self) -> None:
            state = left.pop(0)
            self.answer(500 if state is None else 200, state)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def state(alpha: float, *, changing: bool = False) -> dict[str, Any]:
    model = f"aligned@alpha={alpha:g}"
    return {"model": model, "alpha": alpha, "alpha_rules": None, "changing": changing}


@pytest.mark.parametrize("status", [None, 500, 503])
def test_a_change_that_goes_on_without_its_leader(
    status: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alpha_client, "_LOOK_SECONDS", 0.01)
    with service(None, state(0.3, changing=True), state(0.3), status=status) as url:
        assert set_alpha(0.3, url=url)["model"] == "aligned@alpha=0.3"


def test_a_change_that_ends_with_its_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alpha_client, "_LOOK_SECONDS", 0.01)
    with service(state(0.3, changing=True), state(0.5)) as url:
        with pytest.raises(ServingError, match="not changed") as caught:
            set_alpha(0.3, url=url)
    assert "aligned@alpha=0.5" in str(caught.value.hint)
    monkeypatch.setattr(alpha_client, "_SILENT_SECONDS", 0.1)
    with service(*[None] * 100) as url, pytest.raises(ServingError, match="does not answer"):
        set_alpha(0.3, url=url)
