"""Checkpoints in an object store: ranged reads, identified by ETag where the store gives one."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

from expo_ray.checkpoints.sidecars import is_weight_file
from expo_ray.checkpoints.storages.remote_path import RemotePath
from expo_ray.checkpoints.storages.retries import retry_io
from expo_ray.checkpoints.storages.small_files import read_small_file
from expo_ray.checkpoints.storages.storage import FileFacts, hidden_or_deep
from expo_ray.errors import CheckpointError

NUM_LOOKUPS = 16


class RemoteReader:
    """Ranged reads of one object; safe to share between threads."""

    def __init__(self, path: RemotePath, name: str) -> None:
        self._path = path
        self._name = name
        self._file: Any = path.open()
        self.facts = _facts(name, self._file)

    def read_into(self, offset_bytes: int, buffer: memoryview) -> None:
        """Fill the whole buffer from an absolute offset."""
        if offset_bytes + len(buffer) > self.facts.num_bytes:
            raise EOFError(f"{self._path} ends before byte {offset_bytes + len(buffer)}")
        data = retry_io(
            lambda: self._file.read_at(len(buffer), offset_bytes), what=f"read {self._path}"
        )
        if len(data) != len(buffer):
            raise EOFError(f"{self._path} ends before byte {offset_bytes + len(buffer)}")
        buffer[:] = data

    def refresh(self) -> FileFacts:
        """Return the facts as they are now."""
        with self._path.open() as file:
            return _facts(self._name, file)

    def close(self) -> None:
        """Release the file."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class RemoteStorage:
    """A checkpoint below one prefix of a bucket."""

    def __init__(self, path: RemotePath) -> None:
        self._path = path
        self.uri = str(path)

    def list_files(self) -> dict[str, FileFacts]:
        """Return the facts of every object, by name, sorted; hidden ones are left out."""
        import pyarrow.fs as fs

        selector = fs.FileSelector(self._path.key, recursive=True, allow_not_found=True)
        found = {}
        try:
            infos = retry_io(
                lambda: self._path.filesystem.get_file_info(selector), what=f"list {self.uri}"
            )
            for info in infos:
                name = info.path[len(self._path.key) + 1 :]
                if info.type.name == "File" and not hidden_or_deep(name):
                    found[name] = FileFacts(
                        name=name,
                        num_bytes=info.size,
                        version_kind="mtime",
                        version=f"{info.mtime_ns // 10**9}.{info.mtime_ns % 10**9:09d}",
                    )
            # A listing has no ETag: ask for those that decide whether the weights are the same.
            weights = [name for name in found if is_weight_file(name)]
            with ThreadPoolExecutor(NUM_LOOKUPS) as pool:
                found.update(zip(weights, pool.map(self._look, weights), strict=True))
        except OSError as error:
            raise _unreadable(self.uri, error) from error
        if not found:
            raise CheckpointError(
                "no such checkpoint folder",
                where=self.uri,
                got="no objects below this prefix",
                hint="a checkpoint is a folder: give the prefix above the file"
                if is_weight_file(self.uri)
                else "check bucket, prefix and endpoint (AWS_ENDPOINT_URL)",
            )
        return dict(sorted(found.items()))

    def read_bytes(self, name: str) -> bytes:
        """Return the content of a small file."""
        where = self._path / name
        with self.open(name) as reader:
            try:
                return read_small_file(reader, where=where)
            except (EOFError, OSError) as error:
                raise _unreadable(str(where), error) from error

    def open(self, name: str) -> RemoteReader:
        """Open a file for ranged reads."""
        path = self._path / name
        try:
            return RemoteReader(path, name)
        except OSError as error:
            raise _unreadable(str(path), error) from error

    def _look(self, name: str) -> FileFacts:
        with (self._path / name).open() as file:
            return _facts(name, file)


def _facts(name: str, file: Any) -> FileFacts:
    metadata = {key.lower(): value for key, value in (file.metadata() or {}).items()}
    etag = metadata.get(b"etag", metadata.get("etag", b""))
    text = (etag.decode() if isinstance(etag, bytes) else str(etag)).strip('"')
    if text:
        return FileFacts(name=name, num_bytes=file.size(), version_kind="etag", version=text)
    modified = metadata.get(b"last-modified", metadata.get("last-modified", b"unknown"))
    version = modified.decode() if isinstance(modified, bytes) else str(modified)
    return FileFacts(name=name, num_bytes=file.size(), version_kind="mtime", version=version)


def _unreadable(where: str, error: Exception) -> CheckpointError:
    missing = isinstance(error, FileNotFoundError)
    return CheckpointError(
        "the file is missing" if missing else "the object store cannot be read",
        where=where,
        got=None if missing else f"{error}{RemotePath(where).store.through_proxy()}",
        hint=None if missing else "check bucket, endpoint and credentials of the environment",
    )
