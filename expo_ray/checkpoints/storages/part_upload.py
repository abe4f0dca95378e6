"""Uploads of objects that are computed piece by piece; many at a time in little memory.

pyarrow gathers parts of 10 MiB, which cannot be made smaller. S3 takes parts from 5 MiB on, and
boto3 sends them, where it is installed (the `s3` extra).
"""

from __future__ import annotations

from typing import Any

from expo_ray.checkpoints.storages.remote_path import RemotePath
from expo_ray.checkpoints.storages.s3_client import is_s3, s3_client, s3_errors
from expo_ray.checkpoints.storages.unfinished_uploads import Upload, abort_uploads

MAX_STREAMS = 4
"""More uploads than this at a time are sent in small parts: larger ones have fewer round trips."""
MIN_PART_BYTES = 5 * 1024**2
MAX_PARTS = 10_000


def sends_small_parts(path: RemotePath, num_open: int) -> bool:
    """Tell whether an upload to a place gathers small parts.

    Args:
        path: Where it goes.
        num_open: Uploads of a process at a time.
    """
    return num_open > MAX_STREAMS and is_s3(path) and s3_client() is not None


def open_upload(path: RemotePath, num_bytes: int, *, num_open: int) -> Any:
    """Open an object for writing, in order: a file with `write`, `close` and `closed`.

    Args:
        path: Where it goes; nothing shows there before it is closed.
        num_bytes: Size of the whole.
        num_open: Uploads of this process at a time.

    Raises:
        OSError: The store failed.
    """
    if sends_small_parts(path, num_open):
        return PartUpload(path, num_bytes)
    return path.filesystem.open_output_stream(path.key)


class PartUpload:
    """A multipart upload in parts as small as S3 allows, all of one size but the last.

    Args:
        path: Where it goes.
        num_bytes: Size of the whole: S3 takes 10,000 parts.

    Raises:
        OSError: The store failed.
    """

    def __init__(self, path: RemotePath, num_bytes: int) -> None:
        bucket, _, key = path.key.partition("/")
        self._path = path
        part_bytes = max(MIN_PART_BYTES, -(-num_bytes // MAX_PARTS))
        self._buffer = bytearray(min(part_bytes, num_bytes))
        self._num_held = 0
        self._parts: list[dict[str, Any]] = []
        self.closed = False
        self._where = {"Bucket": bucket, "Key": key}
        begun = self._call("create_multipart_upload")
        self._where["UploadId"] = begun["UploadId"]
        self._upload = Upload(bucket=bucket, key=key, upload_id=begun["UploadId"])

    def write(self, data: memoryview | bytes) -> None:
        """Take the next bytes; those that fill a part are sent.

        Raises:
            OSError: The store failed.
        """
        view = memoryview(data)
        while view:
            taken = view[: len(self._buffer) - self._num_held]
            self._buffer[self._num_held : self._num_held + len(taken)] = taken
            self._num_held += len(taken)
            view = view[len(taken) :]
            if self._num_held == len(self._buffer):
                self._send()

    def close(self) -> None:
        """Send what is left and let the object appear.

        Raises:
            OSError: The store failed, or somebody aborted the upload.
        """
        if self.closed:
            return
        del self._buffer[self._num_held :]
        if self._buffer or not self._parts:
            self._send()
        self._call("complete_multipart_upload", MultipartUpload={"Parts": self._parts})
        self.closed = True

    def abort(self) -> None:
        """End the upload, unless it is closed, and remove what the store holds of it."""
        if not self.closed:
            abort_uploads([self._upload])
            self.closed = True

    def _send(self) -> None:
        number = len(self._parts) + 1
        sent = self._call("upload_part", PartNumber=number, Body=self._buffer)
        self._parts.append({"PartNumber": number, "ETag": sent["ETag"]})
        self._num_held = 0

    def _call(self, name: str, **what: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = getattr(s3_client(), name)(**self._where, **what)
        except s3_errors() as error:
            raise OSError(f"cannot write {self._path}: {error}") from error
        return answer
