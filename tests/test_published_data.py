"""`make data` against a server of this machine, with files of ours and, where found, the real."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests import published_data as published
from tests import samples


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder; yields its address and the paths that were asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            asked.append(self.path)

    handler = functools.partial(Handler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with responses and judgements of ours at the published paths."""
    contents = {
        name: json.dumps(samples.outputs() if name.startswith("outputs") else [name]).encode()
        for name in published.FILES
    }
    files = {
        name: (published.FILES[name][0], hashlib.sha256(content).hexdigest())
        for name, content in contents.items()
    }
    monkeypatch.setattr(published, "FILES", files)
    for name, (path, _) in files.items():
        (tmp_path / "source" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / path).write_bytes(contents[name])
    return tmp_path / "source"


def test_what_is_missing_is_fetched_once(source: Path, tmp_path: Path) -> None:
    with serving(source) as (url, asked):
        published.fetch(tmp_path / "data", url)
        assert len(asked) == len(published.FILES)
        (tmp_path / "data/alpaca_eval/leaderboard.csv").write_text("half of it")
        published.fetch(tmp_path / "data", url)
        assert asked[len(published.FILES) :] == ["/results_alpaca/leaderboard.csv"]
    lines = (tmp_path / "data/alpaca_eval/prompts.jsonl").read_text().splitlines()
    assert [json.loads(line)["instruction"] for line in lines] == [
        row["instruction"] for row in samples.outputs()
    ]


def test_another_file_is_refused_and_nothing_seems_complete(source: Path, tmp_path: Path) -> None:
    with serving(source) as (url, _):
        published.fetch(tmp_path / "data", url)
        (source / "results_alpaca/leaderboard.csv").write_text("other numbers")
        (tmp_path / "data/alpaca_eval/leaderboard.csv").unlink()
        with pytest.raises(SystemExit, match=r"leaderboard.csv is not what was published: sha256"):
            published.fetch(tmp_path / "data", url)
        (source / "results_alpaca/leaderboard.csv").unlink()
        with pytest.raises(SystemExit, match=r"cannot be fetched: .*404"):
            published.fetch(tmp_path / "data", url)
    assert not (tmp_path / "data/alpaca_eval/prompts.jsonl").exists()


def test_the_published_files_have_these_digests(published_data: Path, tmp_path: Path) -> None:
    for name, (path, _) in published.FILES.items():
        target = tmp_path / "source" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(published_data / "alpaca_eval" / name)
    with serving(tmp_path / "source") as (url, _):
        published.fetch(tmp_path / "data", url)
    for name in (*published.FILES, published.PROMPTS):
        fetched = (tmp_path / "data/alpaca_eval" / name).read_bytes()
        assert fetched == (published_data / "alpaca_eval" / name).read_bytes()
