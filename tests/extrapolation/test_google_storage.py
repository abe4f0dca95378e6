"""gs:// against a server that speaks Google's storage API."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from expo_ray.checkpoints import open_checkpoint, weights_digest
from expo_ray.checkpoints.opening import open_storage
from expo_ray.checkpoints.storages.remote_path import RemotePath
from expo_ray.errors import CheckpointError, ConfigError, ShardError
from expo_ray.extrapolation import extrapolate, verify
from expo_ray.extrapolation.shards import engine
from tests.checkpoints.gcs_server import BUCKET, gcs_server, use
from tests.extrapolation.synthetic import IDENTITY_FILES

Pair = tuple[Path, Path]
OPTIONS = {"max_shard_size": "20KB", "address": "inline"}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gcs") / "requests.log"


@pytest.fixture(scope="module")
def server(log: Path) -> Iterator[str]:
    with gcs_server(log) as address:
        yield address


@pytest.fixture(autouse=True)
def gs(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, server)


def upload(folder: Path, prefix: str) -> str:
    target = RemotePath(f"gs://{BUCKET}/{prefix}")
    for path in folder.rglob("*"):
        if path.is_file():
            (target / path.relative_to(folder).as_posix()).write_bytes(path.read_bytes())
    return str(target)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in IDENTITY_FILES
    }


def stored(uri: str) -> dict[str, bytes]:
    storage = open_storage(uri)
    names = [name for name in storage.list_files() if name not in IDENTITY_FILES]
    return {name: storage.read_bytes(name) for name in names}


def test_reads_ask_for_their_ranges_and_a_replaced_object_is_noticed(
    pico_pair: Pair, log: Path
) -> None:
    uri = upload(pico_pair[1], "ranges")
    remote, local = open_checkpoint(uri), open_checkpoint(pico_pair[1])
    assert weights_digest(remote) == weights_digest(local)
    name = remote.files[0]
    data = (pico_pair[1] / name).read_bytes()
    with open_storage(uri).open(name) as reader:
        buffer = bytearray(100)
        reader.read_into(57, memoryview(buffer))
        assert bytes(buffer) == data[57:157]
        assert log.read_text().splitlines()[-1].endswith("bytes=57-156")
        with pytest.raises(EOFError):
            reader.read_into(len(data) - 10, memoryview(bytearray(11)))
        assert reader.refresh() == reader.facts
        (RemotePath(uri) / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert reader.refresh() != reader.facts


def test_paths_on_gs_behave_like_paths() -> None:
    root = RemotePath(f"gs://{BUCKET}/paths")
    assert not root.exists()
    (root / "a.json").write_bytes(b"{}")
    (root / "sub/b.txt").write_bytes(b"text")
    assert list(root.glob("*.json")) == [root / "a.json"]
    assert (root / "sub").is_dir()
    (root / "sub/b.txt").replace(root / "c.txt")
    assert (root / "c.txt").read_bytes() == b"text"
    (root / "a.json").unlink()
    (root / "a.json").unlink(missing_ok=True)
    root.remove_tree()
    assert not root.exists()
    with pytest.raises(FileNotFoundError):
        root.read_bytes()


def test_what_is_not_there_is_told(pico_pair: Pair) -> None:
    for uri in (f"gs://{BUCKET}/nothing", "gs://no-such-bucket/model"):
        with pytest.raises(CheckpointError, match="no such checkpoint folder"):
            open_checkpoint(uri)
    with pytest.raises(CheckpointError, match="the file is missing"):
        open_storage(f"gs://{BUCKET}/nothing").open("model.safetensors")
    with pytest.raises(ConfigError, match="output cannot be used"):
        extrapolate(*pico_pair, "gs://no-such-bucket/out", alpha=1, **OPTIONS)


def test_from_bucket_to_bucket_through_a_failure_gives_the_bytes_of_a_disk(
    pico_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = [upload(folder, f"e2e/{folder.name}") for folder in pico_pair]
    out = f"gs://{BUCKET}/e2e/out"
    finish = engine.RemoteShardWriter.finish

    def break_second(self: engine.RemoteShardWriter, tensors: dict[str, object]) -> object:
        if "00002-of" in self.name:
            raise ShardError("stopped by the test")
        return finish(self, tensors)

    with monkeypatch.context() as patch:
        patch.setattr(engine.RemoteShardWriter, "finish", break_second)
        with pytest.raises(ShardError, match="stopped by the test"):
            extrapolate(*pair, out, alpha=0.3, **OPTIONS)
    # The broken shard is under no name, and what is there reads as no checkpoint.
    left = [path.name for path in RemotePath(out).iterdir()]
    assert "model-00001" in " ".join(left)
    assert "model-00002" not in " ".join(left)
    assert not list((RemotePath(out) / ".expo_ray").glob("*.tmp"))
    with pytest.raises(CheckpointError, match="unfinished"):
        open_checkpoint(out)
    result = extrapolate(*pair, out, alpha=0.3, **OPTIONS)
    assert (result.outputs[0].status, result.outputs[0].num_shards_resumed) == ("resumed", 1)
    extrapolate(*pico_pair, tmp_path / "out", alpha=0.3, **OPTIONS)
    assert stored(out) == contents(tmp_path / "out")
    assert not (RemotePath(out) / ".expo_ray").exists()
    record = json.loads((RemotePath(out) / "expo_ray.json").read_text())
    assert record["aligned"]["uri"] == pair[1]
    assert verify(out, address="inline").recomputed
    assert extrapolate(*pair, out, alpha=0.3, **OPTIONS).outputs[0].status == "skipped"
