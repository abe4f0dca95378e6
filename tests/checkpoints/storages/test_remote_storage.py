"""s3:// against a real S3 protocol server."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from expo_ray.checkpoints import iter_tensors, open_checkpoint, weights_digest
from expo_ray.checkpoints.opening import open_storage
from expo_ray.checkpoints.storages.remote_path import RemotePath, any_path
from expo_ray.errors import CheckpointError
from tests.checkpoints.s3_server import (
    BUCKET,
    FailingProxy,
    client,
    upload,
    use,
)

Pair = tuple[Path, Path]


def test_a_checkpoint_in_a_bucket_reads_like_the_local_one(pico_pair: Pair, s3: str) -> None:
    uri = upload(s3, pico_pair[1], "runs/aligned")
    remote, local = open_checkpoint(uri), open_checkpoint(pico_pair[1])
    assert remote.uri == uri
    assert remote.tensors == local.tensors
    assert (remote.config, remote.sidecars) == (local.config, local.sidecars)
    assert weights_digest(remote) == weights_digest(local)
    for (name, tensor), (expected_name, expected) in zip(
        iter_tensors(remote), iter_tensors(local), strict=True
    ):
        assert name == expected_name
        assert torch.equal(tensor, expected)
    etag = client(s3).head_object(Bucket=BUCKET, Key=f"runs/aligned/{remote.files[0]}")["ETag"]
    entry = remote.identity()[0]
    assert entry["etag"] == etag.strip('"')
    assert entry["uri"] == f"{uri}/{remote.files[0]}"


def test_a_replaced_or_shorter_object_is_noticed(pico_pair: Pair, s3: str) -> None:
    uri = upload(s3, pico_pair[1], "runs/changing")
    name = open_checkpoint(uri).files[0]
    data = (pico_pair[1] / name).read_bytes()
    with open_storage(uri).open(name) as reader:
        before = reader.refresh()
        assert before == reader.facts
        changed = bytearray(data)
        changed[-1] ^= 1
        put = client(s3).put_object
        put(Bucket=BUCKET, Key=f"runs/changing/{name}", Body=bytes(changed))
        assert reader.refresh() != before
        put(Bucket=BUCKET, Key=f"runs/changing/{name}", Body=data[:-100])
        with pytest.raises((EOFError, OSError)):
            reader.read_into(len(data) - 50, memoryview(bytearray(50)))


def test_many_threads_share_a_reader(pico_pair: Pair, s3: str) -> None:
    uri = upload(s3, pico_pair[1], "runs/threads")
    name = open_checkpoint(uri).files[0]
    data = (pico_pair[1] / name).read_bytes()

    def read(start: int) -> bytes:
        buffer = bytearray(100)
        reader.read_into(start, memoryview(buffer))
        return bytes(buffer)

    with open_storage(uri).open(name) as reader, ThreadPoolExecutor(8) as pool:
        starts = list(range(0, len(data) - 100, 997))
        assert list(pool.map(read, starts)) == [data[s : s + 100] for s in starts]
        with pytest.raises(EOFError):
            reader.read_into(len(data) - 10, memoryview(bytearray(11)))


def test_a_server_that_fails_every_seventh_request_is_read_all_the_same(
    pico_pair: Pair, s3_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = upload(s3_url, pico_pair[1], "runs/failing")
    proxy = FailingProxy(s3_url, every=7)
    try:
        use(monkeypatch, proxy.url)
        assert weights_digest(open_checkpoint(uri)) == weights_digest(open_checkpoint(pico_pair[1]))
        assert proxy.num_failed > 5
    finally:
        proxy.close()


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        (f"s3://{BUCKET}/nothing/here", "no such checkpoint folder"),
        ("s3://no-such-bucket/model", "no such checkpoint folder"),
        ("s3://", "not an address"),
        (f"s3://{BUCKET}/a/../b", "not an address"),
        ("ftp://host/model", "not supported"),
    ],
)
def test_wrong_addresses_are_refused(
    s3: str, uri: str, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(CheckpointError, match=words) as caught:
        open_checkpoint(uri)
    # Credentials are in neither errors nor logs.
    assert "of-tests" not in str(caught.value) + caplog.text


def test_remote_paths_behave_like_paths(s3: str) -> None:
    root = any_path(f"s3://{BUCKET}/paths/")
    assert isinstance(root, RemotePath)
    assert not root.exists()
    one, two = root / "a.json", root / "sub/b.txt"
    one.write_bytes(b"{}")
    two.write_bytes(b"text")
    assert (one.read_text(), one.stat().st_size, one.name) == ("{}", 2, "a.json")
    assert two.parent == root / "sub"
    assert [p.name for p in root.iterdir()] == ["a.json", "sub"]
    assert list(root.glob("*.json")) == [one]
    two.replace(root / "c.txt")
    assert (root / "c.txt").is_file()
    assert not two.exists()
    one.unlink()
    one.unlink(missing_ok=True)
    root.remove_tree()
    assert not (root / "c.txt").exists()
    with pytest.raises(FileNotFoundError):
        one.read_bytes()
    with pytest.raises(FileNotFoundError):
        one.stat()
    with pytest.raises(TypeError, match="no local path"):
        Path(one)  # type: ignore[arg-type]
