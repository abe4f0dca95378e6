"""Transforms of delta: what replaces it before the formula is applied as ever.

A transform looks at one tensor at a time. What it must know of the whole tensor it learns in
passes of its own, over blocks that do not depend on chunks or threads, so that neither does the
result. Only the truncated SVD holds a tensor whole, and says how much memory that takes.
"""

from __future__ import annotations

import functools
import hashlib
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from expo_ray.errors import ConfigError, argument
from expo_ray.extrapolation.pairing.tensor_pair import TensorPair

if TYPE_CHECKING:  # a driver plans without it: torch takes 200 MB and seconds
    import torch

FLAG = argument("transforms")

Result = TypeVar("Result")
Visit = Callable[[int, "torch.Tensor"], Result]
"""Takes (first element, a block of delta in the compute dtype), in any thread."""


class OverBlocks(Protocol):
    """Passes once over the delta of a tensor."""

    def __call__(self, visit: Visit[Result], /) -> list[Result]:
        """Return one result per block, in order."""


Stage = Callable[["torch.Tensor", int], None]
"""Changes a part of delta in place, given its first element."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Transform:
    """One transform with its parameters."""

    name: ClassVar[str]

    def num_passes(self, pair: TensorPair, item_bytes: int) -> int:
        """Return how often a tensor is read before its formula, by the size of the arithmetic."""
        return 0

    def memory_bytes(self, pair: TensorPair) -> int:
        """Return what a tensor takes beside the buffers of every task."""
        return 0

    def prepare(self, pair: TensorPair, over_blocks: OverBlocks) -> Stage:
        """Learn what is needed of a tensor; torch has one thread meanwhile.

        Args:
            pair: The tensor.
            over_blocks: Passes over its delta.
        """
        raise NotImplementedError

    def __str__(self) -> str:
        values = ",".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self))
        return f"{self.name}:{values}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Magnitude(Transform):
    """Keep the share of entries with the largest magnitude and zero the others.

    The trimming step of TIES-Merging (Yadav et al. 2023, arXiv:2306.01708). Entries as large as
    the smallest kept one are all kept.
    """

    name: ClassVar[str] = "magnitude"
    keep: float

    def __post_init__(self) -> None:
        _check(self.name, "keep", self.keep, 0 < self.keep <= 1, "above 0, at most 1")

    def num_passes(self, pair: TensorPair, item_bytes: int) -> int:
        """Two passes in float32, four in float64: 16 bits of the threshold each."""
        return item_bytes // 2

    def prepare(self, pair: TensorPair, over_blocks: OverBlocks) -> Stage:
        """Find the threshold exactly, digit by digit, from counts alone."""
        import torch

        rank = max(1, round(self.keep * pair.num_extrapolated))
        prefix, shift = 0, 0
        while True:
            counts, item_bits = _count_digits(over_blocks, prefix, shift)
            from_above = np.cumsum(counts[::-1])
            digit = counts.size - 1 - int(np.searchsorted(from_above, rank))
            rank -= int(from_above[-1] - counts[: digit + 1].sum())
            prefix = prefix << 16 | digit
            shift += 16
            if shift == item_bits:
                break

        def stage(delta: torch.Tensor, start: int) -> None:
            delta.mul_(torch.from_numpy(_magnitudes(delta) >= prefix))

        return stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Dare(Transform):
    """Drop entries at random and divide the others by the share that stays.

    DARE (Yu et al. 2024, arXiv:2311.03099). The noise of an entry depends on seed, tensor name and
    position in the tensor, on nothing else; tied tensors share that of one name.
    """

    name: ClassVar[str] = "dare"
    drop: float
    seed: int = 42

    def __post_init__(self) -> None:
        _check(self.name, "drop", self.drop, 0 <= self.drop < 1, "at least 0, below 1")
        _check(self.name, "seed", self.seed, self.seed >= 0, "at least 0")

    def prepare(self, pair: TensorPair, over_blocks: OverBlocks) -> Stage:
        """Derive the key of the tensor's noise."""
        import torch

        text = f"{self.seed}\n{pair.tied_to or pair.name}".encode()
        key = int.from_bytes(hashlib.sha256(text).digest()[:16], "little")
        threshold = np.uint64(int(self.drop * 2**64))
        scale = 1 / (1 - self.drop)

        def stage(delta: torch.Tensor, start: int) -> None:
            noise = np.random.Philox(key=key)
            # A step of this generator gives four numbers.
            noise.advance(start // 4)
            skipped = start % 4
            draws = noise.random_raw(skipped + delta.numel())[skipped:]
            delta.mul_(torch.from_numpy(draws >= threshold)).mul_(scale)

        return stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip(Transform):
    """Scale delta down where its Frobenius norm exceeds a limit, per tensor.

    Norm clipping as of gradients (Pascanu et al. 2013, arXiv:1211.5063), here of a task vector.
    """

    name: ClassVar[str] = "clip"
    norm: float

    def __post_init__(self) -> None:
        _check(self.name, "norm", self.norm, 0 < self.norm < math.inf, "a positive number")

    def num_passes(self, pair: TensorPair, item_bytes: int) -> int:
        """One pass for the norm."""
        return 1

    def prepare(self, pair: TensorPair, over_blocks: OverBlocks) -> Stage:
        """Measure the norm, in float64 over fixed blocks."""
        import torch

        def squares(start: int, delta: torch.Tensor) -> float:
            wide = delta.double()
            return float(torch.dot(wide, wide))

        norm = math.sqrt(math.fsum(over_blocks(squares)))
        scale = self.norm / norm if norm > self.norm else None

        def stage(delta: torch.Tensor, start: int) -> None:
            if scale is not None:
                delta.mul_(scale)

        return stage


@dataclass(frozen=True, kw_only=True, slots=True)
class Svd(Transform):
    """Replace delta of a matrix by its best approximation of a rank; others keep theirs.

    The truncated singular value decomposition (Eckart and Young 1936), as mergekit-extract-lora
    uses it on a difference of models. Linear algebra libraries of two processors may differ in
    the last bits: `verify` belongs on the kind of machine that wrote.
    """

    name: ClassVar[str] = "svd"
    rank: int

    def __post_init__(self) -> None:
        _check(self.name, "rank", self.rank, self.rank >= 1, "at least 1")

    def num_passes(self, pair: TensorPair, item_bytes: int) -> int:
        """One pass to gather the matrix."""
        return int(self._shape(pair) is not None)

    def memory_bytes(self, pair: TensorPair) -> int:
        """Matrix, copy and product in float64, and Gram matrix, vectors and work space."""
        shape = self._shape(pair)
        if shape is None:
            return 0
        small = min(shape)
        return 8 * (3 * shape[0] * shape[1] + 5 * small * small)

    def prepare(self, pair: TensorPair, over_blocks: OverBlocks) -> Stage:
        """Project on the leading singular vectors of the shorter side."""
        import torch

        shape = self._shape(pair)
        if shape is None:
            return _leave
        matrix = torch.empty(shape, dtype=torch.float64)
        dtype = over_blocks(functools.partial(_gather, matrix.view(-1)))[0]
        is_wide = shape[0] <= shape[1]
        gram = matrix @ matrix.T if is_wide else matrix.T @ matrix
        leading = torch.linalg.eigh(gram).eigenvectors[:, -self.rank :]
        del gram
        product = leading @ (leading.T @ matrix) if is_wide else (matrix @ leading) @ leading.T
        del matrix
        result = product.to(dtype).view(-1)

        def stage(delta: torch.Tensor, start: int) -> None:
            delta.copy_(result[start : start + delta.numel()])

        return stage

    def _shape(self, pair: TensorPair) -> tuple[int, int] | None:
        """Return the shape of a matrix whose rank is worth cutting, None for others."""
        if len(pair.aligned.shape) != 2 or not pair.num_extrapolated:
            return None
        num_columns = pair.aligned.shape[1]
        shape = (pair.num_extrapolated // num_columns, num_columns)
        return shape if self.rank < min(shape) else None


KINDS: tuple[type[Transform], ...] = (Magnitude, Dare, Svd, Clip)


def parse_transforms(texts: Sequence[str]) -> tuple[Transform, ...]:
    """Read transforms in the order in which they are applied.

    Args:
        texts: Such as `dare:drop=0.9,seed=1`.

    Raises:
        ConfigError: A name or key is unknown, or a value is out of range.
    """
    return tuple(_parse(text) for text in texts)


def transform_memory_bytes(pairs: Sequence[TensorPair], transforms: Sequence[Transform]) -> int:
    """Return the memory that the most demanding tensor takes beside the buffers of a task."""
    return max((sum(t.memory_bytes(p) for t in transforms) for p in pairs), default=0)


def _parse(text: str) -> Transform:
    name, _, rest = text.partition(":")
    kinds = {kind.name: kind for kind in KINDS}
    kind = kinds.get(name.strip())
    if kind is None:
        raise ConfigError(
            "unknown transform", where=FLAG, got=text, expected=", ".join(map(_usage, KINDS))
        )
    types: dict[str, type] = {f.name: int if f.type == "int" else float for f in fields(kind)}
    values: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in types or key in values:
            raise ConfigError("unknown or doubled key", where=argument("transforms", text), got=key)
        try:
            values[key] = types[key](value)
        except ValueError as error:
            raise ConfigError(
                "not a number",
                where=argument("transforms", text),
                got=value,
                expected=types[key].__name__,
            ) from error
    try:
        return kind(**values)
    except TypeError as error:
        raise ConfigError(
            "a key is missing", where=FLAG, got=text, expected=_usage(kind)
        ) from error


def _usage(kind: type[Transform]) -> str:
    return f"{kind.name}:" + ",".join(f"{f.name}=..." for f in fields(kind))


def _check(name: str, key: str, value: float, is_right: bool, expected: str) -> None:
    if not is_right:
        raise ConfigError(
            "out of range",
            where=argument("transforms", f"{name}:{key}"),
            got=value,
            expected=expected,
        )


def _gather(flat: torch.Tensor, start: int, delta: torch.Tensor) -> torch.dtype:
    flat[start : start + delta.numel()].copy_(delta)
    return delta.dtype


def _leave(delta: torch.Tensor, start: int) -> None:
    """Change nothing."""


def _magnitudes(delta: torch.Tensor) -> npt.NDArray[Any]:
    """Return floats without sign as integers, which have the same order."""
    if delta.element_size() == 4:
        return np.bitwise_and(delta.numpy().view(np.uint32), np.uint32(2**31 - 1))
    return np.bitwise_and(delta.numpy().view(np.uint64), np.uint64(2**63 - 1))


def _count_digits(
    over_blocks: OverBlocks, prefix: int, shift: int
) -> tuple[npt.NDArray[np.int64], int]:
    """Count the next 16 bits of all magnitudes that start with the prefix."""
    counts = np.zeros(1 << 16, dtype=np.int64)
    lock = threading.Lock()

    def count(start: int, delta: torch.Tensor) -> int:
        item_bits = 8 * delta.element_size()
        values = _magnitudes(delta)
        if shift:
            values = values[(values >> values.dtype.type(item_bits - shift)) == prefix]
        digits = (values >> values.dtype.type(item_bits - shift - 16)) & values.dtype.type(0xFFFF)
        found = np.bincount(digits.astype(np.int64), minlength=1 << 16)
        with lock:
            counts[:] += found
        return item_bits

    return counts, max(over_blocks(count), default=32)
