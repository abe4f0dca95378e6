"""JSON, YAML and answers that were made to break their reader."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest

from expo_ray.errors import ConfigError
from expo_ray.extrapolation.planning.alpha_rules import read_alpha_rules
from expo_ray.http_text import limited_request
from expo_ray.json_text import parse_json
from expo_ray.workflow.recipe_file import load_recipe
from expo_ray.yaml_text import parse_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{', '.join([f'*{before}'] * 10)}]}}\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "deep"),
        ("[" * 101 + "]" * 101, "deep"),
        ('{"a":' * 150 + "1" + "}" * 150, "deep"),
        ("9" * 5000, "too many digits"),
        ("{", "Expecting"),
        (b"\xff\xff", "codec"),
    ],
)
def test_json_that_breaks_its_reader_is_a_value_error(text: str | bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_json(text)


def test_json_of_any_length_and_modest_depth_is_read() -> None:
    value = [{"a": [[1, "[[["]]}] * 500
    assert parse_json(json.dumps(value)) == value
    deep = "[" * 100 + "]" * 100
    assert parse_json(deep) == json.loads(deep)
    assert parse_json("[NaN, 1e999]")[1] == float("inf")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 5000 + "]" * 5000, "deep"),
        (BOMB, "aliases"),
        (MERGES, "aliases"),
        ("&a [*a]", "deep"),
        ("&a [*a, *a, *a]", "aliases"),
        ("seed: " + "9" * 5000, "digits"),
        ("x: 2001-99-99", "month"),
        ("x: [", "parsing"),
        ("x: {a: 1, b: 2, a: 3}", "'a' stands twice"),
        ("#" * 5_000_000, "characters"),
    ],
)
def test_yaml_that_breaks_its_reader_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_yaml(text)
    file = tmp_path / "r.yaml"
    file.write_text(text)
    for read in (load_recipe, read_alpha_rules):
        with pytest.raises(ConfigError):
            read(file)


def test_yaml_with_anchors_is_read_as_before() -> None:
    text = "a: &a {x: [1, 2]}\nb: *a\nc: {<<: *a, y: null}\n"
    inner = {"x": [1, 2]}
    assert parse_yaml(text) == {"a": inner, "b": inner, "c": {**inner, "y": None}}
    assert parse_yaml("") is None


@contextmanager
def service(body: bytes, coding: str | None) -> Iterator[str]:
    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            if coding is not None:
                self.send_header("Content-Encoding", coding)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def test_an_answer_that_unpacks_to_gigabytes_is_let_go_at_the_limit() -> None:
    packed = gzip.compress(bytes(300 * 2**20), compresslevel=1)
    with service(packed, "gzip") as url, httpx.Client() as client:
        tracemalloc.start()
        with pytest.raises(httpx.DecodingError, match="longer than"):
            limited_request(client, "GET", url)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 100 * 2**20, "the limit is 32 MiB"


@pytest.mark.parametrize("coding", ["gzip, gzip", "br", "zstd"])
def test_codings_that_nobody_asked_for_are_refused(coding: str) -> None:
    with (
        service(gzip.compress(b"x"), coding) as url,
        httpx.Client() as client,
        pytest.raises(httpx.DecodingError, match="not asked for"),
    ):
        limited_request(client, "GET", url)


def test_answers_arrive_packed_or_not() -> None:
    for body, coding in ((b'{"a": 1}', None), (gzip.compress(b'{"a": 1}'), "gzip")):
        with service(body, coding) as url, httpx.Client() as client:
            assert limited_request(client, "GET", url).json() == {"a": 1}
    with (
        service(b"no gzip", "gzip") as url,
        httpx.Client() as client,
        pytest.raises(httpx.DecodingError),
    ):
        limited_request(client, "GET", url)


def test_control_characters_in_yaml_are_malformed_like_anything_else() -> None:
    for text in ("a: \x07", "\x00"):
        with pytest.raises(ValueError, match="not allowed"):
            parse_yaml(text)
