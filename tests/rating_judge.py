"""Judges of answers: real services that rate, or prefer one of two, by fixed rules."""

from __future__ import annotations

import json
import math
import re
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
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [self.reply(body)]}).encode())

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        text = body["messages"][1]["content"]
        said = "Rating: [[8]]" if text.startswith("Why?") else "See [1]. Rating: [[6]], not [[2]]"
        return {"message": {"content": "I pass." if "S-I-L-E-N-T" in text else said}}

    def log_message(self, *args: object) -> None:
        pass


class PreferringJudge(Judge):
    """Prefers the longer of AlpacaEval's two outputs by odds of 3 to 1, in its log probabilities.

    It passes where it is told to, and gives no log probabilities where it is not asked for them.
    """

    SHARE = 0.75

    def reply(self, body: dict[str, Any]) -> dict[str, Any]:
        texts = re.findall(r'"output": """(.*?)"""\n', body["messages"][-1]["content"], re.DOTALL)
        longer, other = ("m", "M") if len(texts[0]) > len(texts[1]) else ("M", "m")
        odds = {longer: self.SHARE, other: 1 - self.SHARE}
        if any("S-I-L-E-N-T" in text for text in texts):
            odds = {"I": 1.0}
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": next(iter(odds))}}
        if body.get("logprobs"):
            told = [{"token": k, "logprob": math.log(v)} for k, v in odds.items()]
            choice["logprobs"] = {"content": [{**told[0], "top_logprobs": told}]}
        return choice


@contextmanager
def rating_judge(kind: type[Judge] = Judge) -> Iterator[int]:
    """Serve it on a free port of 127.0.0.1."""
    Judge.asked.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
