"""An object store is one record in one place: whatever reads and writes addresses knows it then."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pyarrow.fs as fs
import pytest

from expo_ray.checkpoints import open_checkpoint
from expo_ray.checkpoints.storages.object_store import Connection, ObjectStore
from expo_ray.checkpoints.storages.object_stores import OBJECT_STORES
from expo_ray.errors import CheckpointError
from expo_ray.extrapolation import extrapolate, verify
from tests.extrapolation.synthetic import file_digests


def open_folder(folder: Path, connection: Connection) -> fs.FileSystem:
    return fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem())


@pytest.fixture
def toy_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store whose objects are files; returns the folder of its buckets."""
    folder = tmp_path / "store"
    (folder / "bucket").mkdir(parents=True)
    store = ObjectStore(
        scheme="toy", endpoint_variables=("TOY_HOST",), connect=partial(open_folder, folder)
    )
    monkeypatch.setitem(OBJECT_STORES, store.scheme, store)
    return folder


def test_a_store_that_is_registered_is_read_and_written(
    toy_store: Path, pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    for side, name in zip(pico_pair, ("sft", "dpo"), strict=True):
        shutil.copytree(side, toy_store / "bucket" / name)
    (toy_store / "bucket" / "expo" / ".expo_ray" / "receipts").mkdir(parents=True)
    pair = "toy://bucket/sft", "toy://bucket/dpo"
    assert open_checkpoint(pair[0]).tensors.keys() == open_checkpoint(pico_pair[0]).tensors.keys()
    extrapolate(*pair, "toy://bucket/expo", alpha=0.3, address="inline")
    assert not verify("toy://bucket/expo", address="inline").problems
    extrapolate(*pico_pair, tmp_path / "here", alpha=0.3, address="inline")
    assert file_digests(toy_store / "bucket" / "expo") == file_digests(tmp_path / "here")


def test_a_refusal_names_the_stores_there_are(toy_store: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("azure://bucket/sft")
    assert "s3:// or gs:// or toy://" in str(caught.value.expected)


@pytest.mark.parametrize(
    ("value", "url"),
    [("localhost:9000", "https://localhost:9000"), ("http://localhost:9000",) * 2, ("", None)],
)
def test_an_endpoint_without_a_scheme_gets_that_of_its_store(
    value: str, url: str | None, toy_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_HOST", value)
    assert OBJECT_STORES["toy"].endpoint_url() == url
