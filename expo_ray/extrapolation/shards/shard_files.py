"""Where the bytes of an output shard go: into a new file, or beside an existing one to compare."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expo_ray.checkpoints.digests import ContentDigest, WeightsDigest, digest_of
from expo_ray.checkpoints.opening import open_storage
from expo_ray.checkpoints.storages.atomic_io import atomic_write_json, fsync_folder
from expo_ray.checkpoints.storages.storage import WORK_FOLDER
from expo_ray.errors import ShardError
from expo_ray.extrapolation.shards.receipts import receipt_path, version_of
from expo_ray.extrapolation.shards.run_token import check_token
from expo_ray.extrapolation.shards.tasks import Problem, ShardOutput, ShardReceipt, pack_tensors
from expo_ray.extrapolation.shards.write_behind import start_writing

if TYPE_CHECKING:
    import torch

CLOSED = -1


class ShardFile:
    """Base of both: hashes the bytes of each tensor, in order, and with them those of the file."""

    def __init__(self, output: ShardOutput, name: str, header: bytes) -> None:
        self.output = output
        self.name = name
        self.header = header
        self.digests: dict[str, ContentDigest] = {}
        self.problems: list[Problem] = []
        self.num_bytes = len(header)

    def begin(self, tensors: Sequence[str]) -> None:
        """Prepare for tensors that come in this order."""
        self.digests = {name: ContentDigest() for name in tensors}

    def follow(self, name: str, data: memoryview) -> None:
        """Take the next bytes of the file, which belong to this tensor, in their order."""
        self.num_bytes += len(data)
        self.digests[name].update(data)

    def put(self, offset_bytes: int, computed: torch.Tensor, name: str) -> memoryview:
        """Take computed bytes for a place in the file; safe to call from several threads.

        Args:
            offset_bytes: Absolute offset in the file.
            computed: The values, flat.
            name: The tensor they belong to.

        Returns:
            The bytes that the file has there now: these are hashed.
        """
        raise NotImplementedError

    def finish(self, tensors: dict[str, dict[str, Any]]) -> ShardReceipt:
        """Complete the file and return its receipt."""
        raise NotImplementedError

    def discard(self) -> None:
        """Release everything after a failure; has no effect after `finish`."""

    def receipt(self, tensors: dict[str, dict[str, Any]]) -> ShardReceipt:
        """Return the receipt of what went through."""
        whole = WeightsDigest()
        for name, digest in self.digests.items():
            facts = tensors[name]
            facts["digest"] = digest.written()
            whole.add_digest(name, facts["digest"], facts["dtype"], facts["shape"])
        return ShardReceipt(
            name=self.name,
            plan_digest=self.output.plan_digest,
            num_bytes=self.num_bytes,
            digest=whole.written(self.header),
            packed_tensors=pack_tensors(tensors),
            problems=tuple(self.problems),
        )


class ShardWriter(ShardFile):
    """Writes into the work folder and moves the file into place when it is whole."""

    def __init__(self, output: ShardOutput, name: str, header: bytes) -> None:
        super().__init__(output, name, header)
        self._folder = Path(output.folder)
        check_token(self._folder, output.run_token)
        work = self._folder / WORK_FOLDER
        self._temporary = work / f"{name}.{secrets.token_hex(6)}.tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(self._temporary, flags, 0o666)
        self._write(0, memoryview(header))

    def put(self, offset_bytes: int, computed: torch.Tensor, name: str) -> memoryview:
        """Write the bytes at their place."""
        import torch

        data = computed.view(torch.uint8).numpy().data
        self._write(offset_bytes, data)
        start_writing(self._descriptor, offset_bytes, len(data))
        return data

    def finish(self, tensors: dict[str, dict[str, Any]]) -> ShardReceipt:
        """Make the file durable, move it into place, then write its receipt."""
        os.fsync(self._descriptor)
        size = os.fstat(self._descriptor).st_size
        os.close(self._descriptor)
        self._descriptor = CLOSED
        receipt = self.receipt(tensors)
        if size != receipt.num_bytes:
            raise ShardError(
                "the written file has another size than was written",
                where=self._temporary,
                got=size,
                expected=receipt.num_bytes,
            )
        check_token(self._folder, self.output.run_token)
        self._temporary.replace(self._folder / self.name)
        fsync_folder(self._folder)
        receipt = replace(receipt, version=version_of(self._folder, self.name))
        atomic_write_json(receipt_path(self._folder, self.name), receipt.as_dict())
        return receipt

    def discard(self) -> None:
        """Close and remove the temporary file."""
        if self._descriptor != CLOSED:
            os.close(self._descriptor)
            self._descriptor = CLOSED
        with contextlib.suppress(OSError):
            self._temporary.unlink()

    def _write(self, offset_bytes: int, data: memoryview) -> None:
        try:
            while len(data):
                written = os.pwrite(self._descriptor, data, offset_bytes)
                data = data[written:]
                offset_bytes += written
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise ShardError(
                "the disk is full",
                where=self._temporary,
                got=error.strerror,
                hint="free some space and run the same command again, it continues",
            ) from error


class ShardComparer(ShardFile):
    """Reads an existing file and compares it with what the inputs give."""

    def __init__(self, output: ShardOutput, name: str, header: bytes) -> None:
        super().__init__(output, name, header)
        self._reader = open_storage(output.folder).open(name)
        self._is_closed = False
        self.different: dict[str, int] = {}
        self._lock = threading.Lock()
        found = bytearray(min(len(header), self._reader.facts.num_bytes))
        self._reader.read_into(0, memoryview(found))
        if found != header:
            self.problems.append(
                Problem(
                    file=name,
                    tensor=None,
                    message="the header differs",
                    got=digest_of(found),
                    expected=digest_of(header),
                )
            )
        self.header = bytes(found)

    def put(self, offset_bytes: int, computed: torch.Tensor, name: str) -> memoryview:
        """Read the bytes at this place and count elements that differ."""
        import torch

        from expo_ray.extrapolation.arithmetic.statistics import count_different

        # One allocation per chunk: comparing is the rare path and the chunk is small.
        found = torch.empty(computed.numel() * computed.element_size(), dtype=torch.uint8)
        view = found.numpy().data
        position = max(0, min(len(view), self._reader.facts.num_bytes - offset_bytes))
        self._reader.read_into(offset_bytes, view[:position])
        if position < len(view):
            view[position:] = bytes(len(view) - position)
            num_different = (len(view) - position) // computed.element_size()
        else:
            num_different = count_different(found.view(computed.dtype), computed)
        if num_different:
            with self._lock:
                self.different[name] = self.different.get(name, 0) + num_different
        return view

    def finish(self, tensors: dict[str, dict[str, Any]]) -> ShardReceipt:
        """Close the file and list the tensors that differ."""
        self.discard()
        for name, count in sorted(self.different.items()):
            self.problems.append(
                Problem(
                    file=self.name,
                    tensor=name,
                    message="the weights differ from what the inputs give",
                    got=f"{count} other elements",
                    expected="equal bits",
                )
            )
        return self.receipt(tensors)

    def discard(self) -> None:
        """Close the file."""
        if not self._is_closed:
            self._is_closed = True
            self._reader.close()
