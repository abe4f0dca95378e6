"""The input files of one task: opened when first needed, compared with the plan."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import torch

from expo_ray.checkpoints.computed.computed_file import ComputedReader
from expo_ray.checkpoints.formats.header import DTYPE_BITS, TensorRef
from expo_ray.checkpoints.opening import open_storage
from expo_ray.checkpoints.storages.storage import FileFacts, RangeReader
from expo_ray.errors import ShardError, argument
from expo_ray.extrapolation.shards.tasks import ShardTask


class InputFiles:
    """The input files of one task, opened when first needed and checked against the plan."""

    def __init__(self, task: ShardTask) -> None:
        self._sides: dict[str, tuple[str, Mapping[str, FileFacts]]] = {
            "initial": (task.initial_uri, task.initial_files),
            **task.between,
            "aligned": (task.aligned_uri, task.aligned_files),
        }
        if task.onto_uri is not None:
            self._sides["onto"] = (task.onto_uri, task.onto_files)
        # Trajectories have their memory in buffers.
        self._may_compile = task.may_compile and not task.between
        self._readers: dict[tuple[str, str], RangeReader] = {}
        self._lock = threading.Lock()
        self.bytes_read = 0

    def read(self, side: str, ref: TensorRef, start_bytes: int, buffer: torch.Tensor) -> None:
        """Fill a byte tensor from a place inside one stored tensor.

        Raises:
            ShardError: The file ends early or cannot be read.
        """
        reader = self._reader(side, ref.file)
        try:
            reader.read_into(ref.offset_bytes + start_bytes, buffer.numpy().data)
        except (EOFError, OSError) as error:
            raise ShardError(
                "an input cannot be read to its end",
                where=f"{self._sides[side][0]}/{ref.file}, tensor {ref.name!r}",
                got=error,
                hint="the file changed after planning, or the disk failed",
            ) from error
        with self._lock:
            self.bytes_read += ref.input_bytes(buffer.numel() * 8 // DTYPE_BITS[ref.dtype])

    @property
    def uris(self) -> tuple[str, ...]:
        """Where the inputs lie."""
        return tuple(uri for uri, _ in self._sides.values())

    def check_unchanged(self) -> None:
        """Compare the files with the plan once more after the last read.

        Raises:
            ShardError: A file changed while it was read.
        """
        for (side, file), reader in self._readers.items():
            self._compare(side, file, reader.refresh())

    def close(self) -> None:
        """Close all files."""
        for reader in self._readers.values():
            reader.close()

    def _reader(self, side: str, file: str) -> RangeReader:
        with self._lock:
            if (side, file) not in self._readers:
                reader = open_storage(self._sides[side][0]).open(file)
                if isinstance(reader, ComputedReader):
                    reader.may_compile = self._may_compile
                self._readers[side, file] = reader
                self._compare(side, file, reader.facts)
            return self._readers[side, file]

    def _compare(self, side: str, file: str, facts: FileFacts) -> None:
        uri, planned = self._sides[side]
        if facts != planned[file]:
            raise ShardError(
                f"a file of {side} changed since the work was planned",
                where=f"{uri}/{file}",
                got=f"{facts.num_bytes} bytes, {facts.version_kind} {facts.version}",
                expected=f"{planned[file].num_bytes} bytes, "
                f"{planned[file].version_kind} {planned[file].version}",
                hint=f"leave the inputs alone and start again with {argument('overwrite', True)}",
            )
