import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import ClassVar

import pytest

from expo_ray.rewards import load_reward_model
from expo_ray.rewards.judge import parse_rating
from expo_ray.rewards.kinds.judge import API_KEY_ENV
from expo_ray.tables import Message


class Service(BaseHTTPRequestHandler):
    """A small service that rates by what the answer contains."""

    keys: ClassVar[set[str | None]] = set()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.keys.add(self.headers.get("Authorization"))
        conversation = body["messages"][1]["content"]
        status = 400 if "refused" in conversation or self.path != "/v1/chat/completions" else 200
        text = "Good.\nRating: [[8.5]]" if "useful" in conversation else "I would rather not."
        message = {"content": text}
        if "thoughtful" in conversation:
            message["content"] = "<think>First [[3]].</think>Rating: [[7]]"
        elif "endless" in conversation:
            message = {"content": None, "reasoning_content": "Rating: [[3]], or"}
        answer = {"choices": [{"message": message}], "usage": {"prompt_tokens": 11}}
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer if body["model"] == "big" else {}).encode())

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def service_url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def chat(answer: str) -> list[Message]:
    return [Message(role="user", content="q"), Message(role="assistant", content=answer)]


def test_ratings_come_back_in_order_and_failures_are_null(
    service_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(API_KEY_ENV, "k-123")
    judge = load_reward_model(f"judge:{service_url}#big")
    scores = judge.score([chat("useful"), chat("refused"), chat("vague"), chat("useful")])
    assert [score.reward for score in scores] == [8.5, None, None, 8.5]
    assert [score.error is None for score in scores] == [True, False, False, True]
    assert scores[0].tokens == 11
    assert Service.keys == {"Bearer k-123"}
    told, cut = judge.score([chat("thoughtful"), chat("endless")])
    assert (told.reward, cut.reward) == (7.0, None), "a rating stands in the answer"
    assert "still thinking" in str(cut.error)
    [malformed] = load_reward_model(f"judge:{service_url}#other").score([chat("useful")])
    assert malformed.reward is None


def test_the_sampling_of_a_judge_is_part_of_what_its_ratings_are_kept_under() -> None:
    settings = load_reward_model("judge:http://127.0.0.1:1/v1#big").settings
    assert "'temperature': 0" in settings
    assert "'max_tokens': 512" in settings


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Rating: [[7]]", 7.0),
        ("[[3]] at first, then Rating: [[ 10 ]]", 10.0),
        ("[[0]]", None),
        ("[[11]]", None),
        ("Rating: 7", None),
        ("", None),
        (None, None),
    ],
)
def test_only_a_rating_in_range_counts(text: object, rating: float | None) -> None:
    assert parse_rating(text) == rating


MALFORMED = {
    "usage is text": b'{"choices": [{"message": {"content": "[[7]]"}}], "usage": "x"}',
    "usage is infinite": b'{"choices": [{"message": {"content": "[[7]]"}}], "usage": '
    b'{"prompt_tokens": 1e999}}',
    "usage is a list": b'{"choices": [{"message": {"content": "[[7]]"}}], "usage": [1]}',
    "deep": b'{"choices":' + b"[" * 100_000,
    "digits": b'{"choices": ' + b"9" * 10_000 + b"}",
    "half a character": b'{"choices": {"\\ud800": 1}}',
    "no object": b"[1]",
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_one_malformed_answer_is_one_null(kind: str) -> None:
    class Malformed(Service):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(MALFORMED[kind])

    with ThreadingHTTPServer(("127.0.0.1", 0), Malformed) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        judge = load_reward_model(f"judge:http://127.0.0.1:{server.server_port}/v1#m")
        [score] = judge.score([chat("useful")])
        server.shutdown()
    # The rating counts, whatever stands beside it.
    assert (score.reward, score.tokens) == (7.0 if "usage" in kind else None, 0)
    assert (score.error is None) == ("usage" in kind)
    assert len((score.error or "").encode()) < 1000
