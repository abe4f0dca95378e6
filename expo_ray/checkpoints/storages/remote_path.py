"""A place in an object store (s3://, gs://), with the part of pathlib's manner that we need.

An object appears whole or not at all, and there are no folders: `mkdir` has nothing to do. Keys and
secrets come from the environment's usual places and stay inside pyarrow.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias, cast

from expo_ray.checkpoints.storages.object_store import ObjectStore
from expo_ray.checkpoints.storages.object_stores import OBJECT_STORES, object_addresses, scheme_of
from expo_ray.checkpoints.storages.retries import retry_io
from expo_ray.errors import CheckpointError


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectStatus:
    """What `stat` tells of an object."""

    st_size: int


class RemotePath:
    """One key, or the prefix of several, in a bucket."""

    def __init__(self, uri: str) -> None:
        scheme, _, rest = uri.partition("://")
        self._scheme = scheme
        self.key = "/".join(part for part in rest.split("/") if part)
        """Bucket and key, as pyarrow takes them."""
        parts = self.key.split("/")
        if scheme not in OBJECT_STORES or len(parts) < 2 or {".", ".."} & set(parts):
            raise CheckpointError(
                "not an address in an object store",
                where=uri,
                expected=object_addresses("bucket/prefix"),
            )

    def __str__(self) -> str:
        return f"{self._scheme}://{self.key}"

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __fspath__(self) -> str:
        raise TypeError(f"{self} is no local path")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __lt__(self, other: RemotePath) -> bool:
        return str(self) < str(other)

    def __truediv__(self, name: str) -> RemotePath:
        return RemotePath(f"{self}/{name}")

    @property
    def name(self) -> str:
        """The part after the last slash."""
        return self.key.rpartition("/")[2]

    @property
    def parent(self) -> RemotePath:
        """The prefix that this lies in; a bucket alone is refused."""
        return RemotePath(str(self).rpartition("/")[0])

    @property
    def parents(self) -> tuple[RemotePath, ...]:
        """All prefixes above, nearest first."""
        parts = self.key.split("/")
        above = range(len(parts) - 1, 1, -1)
        return tuple(RemotePath(f"{self._scheme}://{'/'.join(parts[:n])}") for n in above)

    @property
    def store(self) -> ObjectStore:
        """The kind of store that it lies in."""
        return OBJECT_STORES[self._scheme]

    @property
    def filesystem(self) -> Any:
        """The pyarrow file system behind it."""
        return self.store.filesystem()

    def resolve(self) -> RemotePath:
        """Return the path itself: there are no links."""
        return self

    def exists(self) -> bool:
        """Whether an object is here, or some below."""
        return bool(self._info().type.name != "NotFound")

    def is_dir(self) -> bool:
        """Whether objects are below."""
        return bool(self._info().type.name == "Directory")

    def is_file(self) -> bool:
        """Whether an object is here."""
        return bool(self._info().type.name == "File")

    def stat(self) -> ObjectStatus:
        """Return the size of the object.

        Raises:
            FileNotFoundError: There is none.
        """
        info = self._info()
        if info.type.name != "File":
            raise FileNotFoundError(f"no object at {self}")
        return ObjectStatus(st_size=info.size)

    def read_bytes(self) -> bytes:
        """Return the whole object.

        Raises:
            FileNotFoundError: There is none.
        """

        def read() -> bytes:
            with self.filesystem.open_input_file(self.key) as file:
                return bytes(file.read())

        return retry_io(read, what=f"read {self}")

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the whole object as text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, data: bytes) -> int:
        """Write the whole object at once."""

        def write() -> int:
            with self.filesystem.open_output_stream(self.key) as stream:
                return int(stream.write(data))

        return retry_io(write, what=f"write {self}")

    def open(self, mode: str = "rb") -> BinaryIO:
        """Open the object for reading."""
        if mode != "rb":
            raise ValueError(f"an object is opened with 'rb', not {mode!r}")
        return cast(
            BinaryIO,
            retry_io(lambda: self.filesystem.open_input_file(self.key), what=f"open {self}"),
        )

    def unlink(self, missing_ok: bool = False) -> None:
        """Remove the object.

        Raises:
            FileNotFoundError: There is none, and that is not fine.
        """
        try:
            retry_io(lambda: self.filesystem.delete_file(self.key), what=f"remove {self}")
        except FileNotFoundError:
            if not missing_ok:
                raise

    def replace(self, target: RemotePath) -> None:
        """Move the object inside its store."""
        retry_io(lambda: self.filesystem.move(self.key, target.key), what=f"move {self}")

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: object stores have no folders."""

    def remove_tree(self) -> None:
        """Remove everything below."""
        if not self.is_dir():
            return
        filesystem = self.filesystem
        # On gs:// pyarrow misses a folder's own object, which nobody made, when all below is gone;
        # on s3:// it would make one after removing the contents alone.
        has_own = self.store.has_folder_objects
        remove = filesystem.delete_dir_contents if has_own else filesystem.delete_dir
        retry_io(lambda: remove(self.key), what=f"remove {self}")

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield what lies directly below; on gs:// objects alone, prefixes are left out there."""
        import pyarrow.fs as fs

        selector = fs.FileSelector(self.key, allow_not_found=True)
        found = retry_io(lambda: self.filesystem.get_file_info(selector), what=f"list {self}")
        for info in sorted(found, key=lambda info: str(info.path)):
            yield self / info.base_name

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Yield what lies directly below and has a matching name."""
        return (path for path in self.iterdir() if fnmatchcase(path.name, pattern))

    def _info(self) -> Any:
        return retry_io(lambda: self.filesystem.get_file_info(self.key), what=f"look at {self}")


AnyPath: TypeAlias = Path | RemotePath


def is_remote(uri: object) -> bool:
    """Tell whether an address is in an object store that we read and write."""
    return scheme_of(str(uri)) in OBJECT_STORES


def any_path(uri: str | AnyPath) -> AnyPath:
    """Return a local path, absolute, or a remote one.

    Raises:
        CheckpointError: The scheme is unknown, or the text is empty.
    """
    text = str(uri)
    if not text.strip():
        # The working directory is what nobody meant, least of all beside --overwrite.
        raise CheckpointError(
            "an address is empty",
            got=repr(text),
            expected="a path or an address",
            hint="a shell variable that is not set gives empty text",
        )
    if is_remote(text):
        return uri if isinstance(uri, RemotePath) else RemotePath(text)
    if "://" in text and not text.startswith("file://"):
        raise CheckpointError(
            "this kind of address is not supported here",
            where=text,
            got=text.split("://", 1)[0] + "://",
            expected=f"a local path, {object_addresses()}; for inputs hf:// or a Hub id, too",
            hint="check the address, or copy what it names to one of these places first",
        )
    return Path(text.removeprefix("file://")).expanduser().absolute()
