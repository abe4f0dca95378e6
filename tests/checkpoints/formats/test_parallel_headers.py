"""Shard headers far away are read several at a time, in a fixed order, with the same errors."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from expo_ray.checkpoints.formats.index import NUM_HEADER_READERS, read_file_headers
from expo_ray.checkpoints.storages.local import LocalReader, LocalStorage
from expo_ray.errors import CheckpointError

NUM_FILES = 3 * NUM_HEADER_READERS
PATIENCE_SECONDS = 20


class WaitingStorage(LocalStorage):
    """Opens no file before as many are asked for as shall be read at a time."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.barrier = threading.Barrier(NUM_HEADER_READERS)
        self.most = 0
        self._open = 0
        self._lock = threading.Lock()

    def open(self, name: str) -> LocalReader:
        with self._lock:
            self._open += 1
            self.most = max(self.most, self._open)
        # Readers that came one after the other would break the barrier, and the read with it.
        self.barrier.wait(PATIENCE_SECONDS)
        with self._lock:
            self._open -= 1
        return super().open(name)


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    names = [f"model-{i:05d}-of-{NUM_FILES:05d}.safetensors" for i in range(1, NUM_FILES + 1)]
    for index, name in enumerate(names):
        save_file({f"tensor.{index}": torch.zeros(3)}, tmp_path / name)
    return names


def test_headers_are_read_side_by_side_and_kept_in_order(tmp_path: Path, files: list[str]) -> None:
    storage = WaitingStorage(tmp_path)
    headers = read_file_headers(storage, files)
    assert list(headers) == files
    found = [header.tensors[0].name for header in headers.values()]
    assert found == [f"tensor.{i}" for i in range(NUM_FILES)]
    assert storage.most == NUM_HEADER_READERS


def test_the_first_damaged_file_is_named(tmp_path: Path, files: list[str]) -> None:
    for name in (files[5], files[20]):
        (tmp_path / name).write_bytes(b"damaged")
    for _ in range(5):
        with pytest.raises(CheckpointError) as caught:
            read_file_headers(LocalStorage(tmp_path), files)
        assert files[5] in str(caught.value)


def test_no_files_are_no_error(tmp_path: Path) -> None:
    assert read_file_headers(LocalStorage(tmp_path), []) == {}
