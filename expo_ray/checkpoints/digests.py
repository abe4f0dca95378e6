"""Digests of files and of weights, written with the name of their algorithm: `blake3:<hex>`.

`weights_digest` is the BLAKE3 over one line per tensor, sorted by name:
`name dtype shape blake3(tensor bytes)` and a line feed, with the dtype as safetensors writes it,
the shape as `[32,64]` and the inner digest in hex. It does not depend on the shard layout.

The digest of a weight file is the BLAKE3 over its header and then the same lines for its tensors,
so that one hash of each byte serves file and tensors; of any other file it is that of its content.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from blake3 import blake3

from expo_ray.checkpoints.checkpoint import Checkpoint
from expo_ray.checkpoints.formats.header import TensorRef
from expo_ray.checkpoints.formats.index import parse_file_header
from expo_ray.checkpoints.storages.storage import RangeReader
from expo_ray.errors import CheckpointError
from expo_ray.progress import NullProgress, Progress

if TYPE_CHECKING:
    import torch

ALGORITHM = "blake3"
SHA256 = "sha256"
"""What records of schema 1 are written in."""
BUFFER_BYTES = 4 * 1024 * 1024


class ContentDigest:
    """A running digest of bytes.

    Args:
        algorithm: `blake3`, or `sha256` for what older records hold.
    """

    def __init__(self, algorithm: str = ALGORITHM) -> None:
        self._algorithm = algorithm
        self._hash: Any = blake3() if algorithm == ALGORITHM else hashlib.new(algorithm)

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Add the next bytes; other threads run meanwhile."""
        self._hash.update(data)

    def written(self) -> str:
        """Return the digest of all bytes so far, as `algorithm:hex`."""
        return f"{self._algorithm}:{self._hash.hexdigest()}"


def digest_of(data: bytes | bytearray | memoryview, algorithm: str = ALGORITHM) -> str:
    """Return the digest of some bytes, as `algorithm:hex`."""
    digest = ContentDigest(algorithm)
    digest.update(data)
    return digest.written()


class WeightsDigest:
    """Gathers tensors in any order and gives the digest of all of them.

    Args:
        algorithm: `blake3`, or `sha256` for what older records hold.
    """

    def __init__(self, algorithm: str = ALGORITHM) -> None:
        self._algorithm = algorithm
        self._lines: dict[str, str] = {}

    def add(
        self, name: str, data: torch.Tensor | bytes | memoryview, dtype: str, shape: Iterable[int]
    ) -> None:
        """Add one tensor by its values.

        Args:
            name: Its name in the checkpoint.
            data: The tensor, or its bytes in row-major order.
            dtype: As safetensors writes it: BF16, F32, ...
            shape: Its sizes.
        """
        raw = data if isinstance(data, bytes | memoryview) else _tensor_view(data)
        self.add_digest(name, digest_of(raw, self._algorithm), dtype, shape)

    def add_digest(self, name: str, digest: str, dtype: str, shape: Iterable[int]) -> None:
        """Add one tensor whose bytes were hashed before.

        Raises:
            ValueError: The name was added before, or hashed by another algorithm.
        """
        if name in self._lines:
            raise ValueError(f"tensor {name!r} was added twice")
        algorithm, _, value = digest.rpartition(":")
        if algorithm != self._algorithm:
            raise ValueError(f"tensor {name!r} was hashed by {algorithm}, not {self._algorithm}")
        sizes = ",".join(str(size) for size in shape)
        self._lines[name] = f"{name} {dtype} [{sizes}] {value}\n"

    def written(self, header: bytes | bytearray = b"") -> str:
        """Return the digest of all tensors added so far, as `algorithm:hex`.

        Args:
            header: Of the file that holds them, where the digest of this file is wanted.
        """
        digest = ContentDigest(self._algorithm)
        digest.update(header)
        for name in sorted(self._lines):
            digest.update(self._lines[name].encode("utf-8"))
        return digest.written()


def hash_weight_file(
    reader: RangeReader,
    *,
    algorithm: str = ALGORITHM,
    on_bytes: Callable[[int], None] = lambda _: None,
) -> tuple[str, dict[str, dict[str, Any]]]:
    """Read a safetensors file once and hash it.

    Args:
        reader: Of the file.
        algorithm: `blake3`; with `sha256` the digest is that of the content, as `sha256sum` has it.
        on_bytes: Called with numbers of bytes that are done.

    Returns:
        The digest of the file, and per tensor `dtype`, `shape` and `digest`.

    Raises:
        CheckpointError: The file is not well-formed.
        EOFError: It ends too early.
        OSError: It cannot be read.
    """
    header, parsed = parse_file_header(reader, file=reader.facts.name)
    whole, found = ContentDigest(algorithm), WeightsDigest(algorithm)
    facts: dict[str, dict[str, Any]] = {}
    whole.update(header)
    buffer = memoryview(bytearray(BUFFER_BYTES))
    # In the order of their bytes, without gaps.
    for ref in parsed.tensors:
        digest = ContentDigest(algorithm)
        for part in _parts(reader, ref, buffer):
            digest.update(part)
            if algorithm != ALGORITHM:
                whole.update(part)
            on_bytes(len(part))
        found.add_digest(ref.name, digest.written(), ref.dtype, ref.shape)
        facts[ref.name] = {
            "dtype": ref.dtype,
            "shape": list(ref.shape),
            "digest": digest.written(),
        }
    return (found.written(header) if algorithm == ALGORITHM else whole.written()), facts


def weights_digest(checkpoint: Checkpoint, progress: Progress | None = None) -> str:
    """Read all weights of a checkpoint in small pieces and return their digest.

    Raises:
        CheckpointError: A file cannot be read to its end.
    """
    result = WeightsDigest()
    buffer = memoryview(bytearray(BUFFER_BYTES))
    bar = (progress or NullProgress()).start("Hashing weights", checkpoint.num_bytes, "B")
    try:
        for file in checkpoint.files:
            with checkpoint.storage.open(file) as reader:
                for ref in checkpoint.tensors.values():
                    if ref.file != file:
                        continue
                    digest = ContentDigest()
                    for part in _parts(reader, ref, buffer):
                        digest.update(part)
                        bar.advance(len(part))
                    result.add_digest(ref.name, digest.written(), ref.dtype, ref.shape)
    except (EOFError, OSError) as error:
        raise CheckpointError(
            "the weights cannot be read", where=checkpoint.uri, got=error
        ) from error
    finally:
        bar.close()
    return result.written()


def _parts(reader: RangeReader, ref: TensorRef, buffer: memoryview) -> Iterator[memoryview]:
    """Yield the bytes of a tensor one after the other; each is gone with the next."""
    for start in range(0, ref.num_bytes, len(buffer)):
        part = buffer[: min(len(buffer), ref.num_bytes - start)]
        reader.read_into(ref.offset_bytes + start, part)
        yield part


def _tensor_view(tensor: torch.Tensor) -> memoryview:
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data
