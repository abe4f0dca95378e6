"""A shard that goes into an object store: one sequential multipart upload, published at the end.

The upload goes to a key in the work folder and is moved inside the store when it is whole, so that
neither a failed task nor one that outlived its run ever shows at, or damages, the final key.
"""

from __future__ import annotations

import contextlib
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING

from expo_ray.checkpoints.storages.atomic_io import atomic_write_json
from expo_ray.checkpoints.storages.part_upload import PartUpload, open_upload
from expo_ray.checkpoints.storages.remote_path import RemotePath
from expo_ray.checkpoints.storages.s3_client import move
from expo_ray.checkpoints.storages.storage import WORK_FOLDER
from expo_ray.checkpoints.storages.unfinished_uploads import abort_uploads, find_uploads_to
from expo_ray.errors import ShardError
from expo_ray.extrapolation.shards.receipts import receipt_path, version_of
from expo_ray.extrapolation.shards.run_token import check_token
from expo_ray.extrapolation.shards.shard_files import ShardFile
from expo_ray.extrapolation.shards.tasks import ShardOutput, ShardReceipt

if TYPE_CHECKING:
    import torch


class RemoteShardWriter(ShardFile):
    """Streams the bytes of a shard in file order.

    Args:
        output: Which checkpoint.
        name: Of the shard.
        header: With which the file begins.
        num_bytes: Size of the whole file.
        num_open: Shards that the process writes at a time.
    """

    def __init__(
        self, output: ShardOutput, name: str, header: bytes, *, num_bytes: int, num_open: int
    ) -> None:
        super().__init__(output, name, header)
        self._folder = RemotePath(output.folder)
        check_token(self._folder, output.run_token)
        self._temporary = self._folder / WORK_FOLDER / f"{name}.{secrets.token_hex(6)}.tmp"
        self._is_published = False
        self._stream = open_upload(self._temporary, num_bytes, num_open=num_open)
        self._stream.write(header)

    def put(self, offset_bytes: int, computed: torch.Tensor, name: str) -> memoryview:
        """Return the bytes; they are sent when their turn in the file comes."""
        import torch

        return computed.view(torch.uint8).numpy().data

    def follow(self, name: str, data: memoryview) -> None:
        """Send and hash the next bytes of the file."""
        self._stream.write(data)
        super().follow(name, data)

    def finish(self, tensors: dict[str, dict[str, object]]) -> ShardReceipt:
        """Complete the upload, publish it, then write its receipt."""
        self._stream.close()
        receipt = self.receipt(tensors)
        size = self._temporary.stat().st_size
        if size != receipt.num_bytes:
            raise ShardError(
                "the written object has another size than was sent",
                where=self._temporary,
                got=size,
                expected=receipt.num_bytes,
            )
        check_token(self._folder, self.output.run_token)
        move(self._temporary, self._folder / self.name, size)
        self._is_published = True
        # Moving takes a store seconds, in which another run may have begun: whether this shard
        # may stay, that one sees by its version.
        check_token(self._folder, self.output.run_token)
        receipt = replace(receipt, version=version_of(self._folder, self.name))
        atomic_write_json(receipt_path(self._folder, self.name), receipt.as_dict())
        return receipt

    def discard(self) -> None:
        """Abort the upload, or else end it, and remove what it left in the work folder."""
        if self._is_published:
            return
        if isinstance(self._stream, PartUpload):
            self._stream.abort()
        elif not self._stream.closed:
            # pyarrow has no abort, and closing completes an upload; without boto3 that is what is
            # left to do.
            abort_uploads(find_uploads_to(self._temporary))
        with contextlib.suppress(OSError):
            self._stream.close()
        with contextlib.suppress(OSError):
            self._temporary.unlink(missing_ok=True)
