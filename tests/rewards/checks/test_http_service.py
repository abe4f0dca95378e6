"""A service decides: what it is told, what it may answer, and how its faults are told."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from expo_ray.errors import ConfigError
from expo_ray.rewards import RewardModelSpec, load_reward_model
from expo_ray.rewards.checks.http_service import API_KEY_ENV
from expo_ray.rewards.checks.reward_model import as_reference
from tests.rewards.checks.test_checks import chats

ANSWERS: dict[str, tuple[int, object]] = {
    "right": (200, {"reward": 1}),
    "half": (200, {"reward": 0.5}),
    "unsure": (200, {"error": "too long"}),
    "words": (200, {"reward": "good"}),
    "list": (200, [1]),
    "denied": (403, {}),
}


class Service(BaseHTTPRequestHandler):
    """Answers by the response that is to be checked."""

    asked: list[tuple[str | None, Any]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.headers.get("Authorization"), body))
        status, answer = ANSWERS[body["response"]]
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[tuple[str, list[tuple[str | None, Any]]]]:
    asked: list[tuple[str | None, Any]] = []
    handler = type("Here", (Service,), {"asked": asked})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/check", asked
    server.shutdown()
    server.server_close()


def test_a_service_decides(
    service: tuple[str, list[tuple[str | None, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = service
    monkeypatch.setenv(API_KEY_ENV, "k-12345678")
    model = load_reward_model(f"check:http={url}")
    target = as_reference({"answer": "42", "tests": None})
    found = model.score(chats(*ANSWERS), [target] * len(ANSWERS))
    assert [score.reward for score in found] == [1, 0.5, None, None, None, None]
    told = [str(score.error) for score in found[2:]]
    for text, expected in zip(
        told, ["the service says: too long", "has no reward", "has no reward", "403"], strict=True
    ):
        assert expected in text
    key, body = next(each for each in asked if each[1]["response"] == "right")
    assert key == "Bearer k-12345678"
    assert body == {
        "response": "right",
        "messages": [{"role": "user", "content": "?"}],
        "answer": "42",
    }


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "not written as its kind is"),
        ("ftp://host/x", "not written as its kind is"),
        ("http://me:word@host/x", "must not carry credentials"),
    ],
)
def test_what_is_no_service_is_refused(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        RewardModelSpec.parse(f"check:http={url}")
    assert "word" not in str(caught.value)
