"""FP8 codes with block scales to values and back, compiled by numba where it is installed.

An accelerator, never another arithmetic: it is used only after it gave the bits of the plain
conversions of torch on a probe of all codes and all kinds of values.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from expo_ray.compiling import bit_casts, trusted

FP8_MAX = 448.0
_INFINITY = 0x7F800000
_PROBE_BLOCK = 256

_lock = threading.Lock()


class Rounding(NamedTuple):
    """What giving values their codes cost."""

    num_changed: int
    """Values whose code is another than that of the same value before its update."""
    squares: tuple[float, float, float]
    """Sums of squares: of the rounding errors, the values, the updates."""


@dataclass(frozen=True, slots=True)
class FusedFp8:
    """Works on rows of values or codes given as tensors, without the interpreter's lock."""

    _decode: Callable[..., None]
    _largest: Callable[..., None]
    _encode: Callable[..., None]

    def values_of(
        self, codes: torch.Tensor, scales: torch.Tensor, first: int, block: tuple[int, int]
    ) -> torch.Tensor:
        """Return code * scale, float32.

        Args:
            codes: (rows, columns) float8_e4m3fn, contiguous.
            scales: One row per row of blocks of the whole matrix, float32.
            first: The number of the first of the rows in the matrix.
            block: Rows and columns of a block.
        """
        found = torch.empty(codes.shape, dtype=torch.float32)
        raw = codes.view(torch.uint8).numpy()
        self._decode(raw, scales.numpy(), first, *block, found.numpy())
        return found

    def largest_of(self, values: torch.Tensor, block: tuple[int, int]) -> torch.Tensor:
        """Return the largest magnitude of every block, float32; infinite where not all are finite.

        Args:
            values: (rows, columns) float32, contiguous, from the first row of a block.
            block: Rows and columns of a block.
        """
        shape = [-(-size // step) for size, step in zip(values.shape, block, strict=True)]
        bits = np.zeros(shape, dtype=np.uint32)
        self._largest(values.numpy(), *block, bits)
        return torch.from_numpy(np.minimum(bits, np.uint32(_INFINITY)).view(np.float32))

    def encode(
        self,
        values: torch.Tensor,
        before: torch.Tensor,
        factors: torch.Tensor,
        stored: torch.Tensor,
        block: tuple[int, int],
    ) -> Rounding:
        """Put the code of every value at the start of the memory of the values.

        Args:
            values: (rows, columns) float32, contiguous and finite, from the first row of a block.
            before: As many: the values before their update.
            factors: What gives codes, float32, one per block.
            stored: What codes are multiplied with when they are read, float32, one per block.
            block: Rows and columns of a block.
        """
        found = np.zeros(4, dtype=np.float64)
        raw = values.view(-1).view(torch.uint8).numpy()
        tables = factors.numpy(), stored.numpy()
        self._encode(values.numpy(), before.numpy(), *tables, *block, raw, found)
        return Rounding(int(found[3]), (float(found[0]), float(found[1]), float(found[2])))


def fused_fp8() -> FusedFp8 | None:
    """Return the kernels of this process; None where there are none, or they give other bits.

    They take a process a second to compile.
    """
    with _lock:
        return _build()


@functools.cache
def _build() -> FusedFp8 | None:
    return trusted("FP8 blocks", _compile, _gives_other_bits)


def _gives_other_bits(kernels: FusedFp8) -> bool:
    every = torch.arange(256).to(torch.uint8).view(torch.float8_e4m3fn).repeat(2, 1)
    scales = torch.tensor([[1.0, 2.0**-120], [0.3, 7e-5]])
    read = kernels.values_of(every, scales, 0, (1, 128))
    expected = every.float() * scales.repeat_interleave(128, dim=1)
    if not torch.equal(read.view(torch.int32), expected.view(torch.int32)):
        return True
    # Every sign, exponent and seven bits of the mantissa, on the ties between codes and off them.
    low = np.array([[0], [0x8421]], dtype=np.uint32)
    bits = (np.arange(1 << 16, dtype=np.uint32) << np.uint32(16)) | low
    values = torch.from_numpy(bits.view(np.float32).reshape(-1))
    values = torch.cat([values[values.isfinite()], torch.linspace(-500, 500, 1 << 16)])
    values = values.view(-1, _PROBE_BLOCK)
    before = torch.roll(values, 1, dims=0)
    block = (len(values), _PROBE_BLOCK)
    largest = kernels.largest_of(values, block)
    codes, unmoved = (t.clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn) for t in (values, before))
    changed = int((codes.view(torch.uint8) != unmoved.view(torch.uint8)).sum())
    one = torch.ones(1, 1)
    made = values.clone()
    rounding = kernels.encode(made, before, one, one, block)
    raw = made.view(-1).view(torch.uint8)[: values.numel()].view(values.shape)
    return (
        float(largest) != float(values.abs().max())
        or rounding.num_changed != changed
        or not torch.equal(raw, codes.view(torch.uint8))
    )


def _compile() -> FusedFp8:
    """Build the kernels; sums may be reordered to use vectors, conversions may not."""
    import numba

    as_float, as_bits, add = bit_casts()
    u32, f32 = np.uint32, np.float32
    # Bits of float32: 2**-6, below which codes have steps of 2**-9, and 448.
    smallest_normal, highest = u32(121 << 23), u32(0x43E00000)
    # Its steps in float32 are those of the small codes.
    magic = f32(2.0**14)
    # The exponents of codes lie 120 lower.
    raised, lowered = f32(2.0**120), u32(120 << 23)
    jit = numba.njit(nogil=True, error_model="numpy")

    @jit  # type: ignore[untyped-decorator]
    def decode(
        codes: Any, scales: Any, first: Any, block_rows: Any, block_columns: Any, values: Any
    ) -> None:
        for row in range(codes.shape[0]):
            by_column = scales[(first + row) // block_rows]
            for start in range(0, codes.shape[1], block_columns):
                scale = by_column[start // block_columns]
                # Slices, because an index that might be negative keeps loops from using vectors.
                run = codes[row, start : start + block_columns]
                target = values[row, start : start + block_columns]
                for k in range(run.size):
                    code = u32(run[k])
                    size = u32(code & u32(0x7F))
                    bits = u32(size << u32(20)) if size != u32(0x7F) else u32(0x7FF00000)
                    signed = u32(bits | u32((code & u32(0x80)) << u32(24)))
                    target[k] = as_float(signed) * raised * scale

    @jit  # type: ignore[untyped-decorator]
    def largest(values: Any, block_rows: Any, block_columns: Any, found: Any) -> None:
        for row in range(values.shape[0]):
            for start in range(0, values.shape[1], block_columns):
                run = values[row, start : start + block_columns]
                highest_size = u32(0)
                for k in range(run.size):
                    size = u32(as_bits(run[k]) & u32(0x7FFFFFFF))
                    highest_size = size if size > highest_size else highest_size
                i, j = row // block_rows, start // block_columns
                found[i, j] = max(found[i, j], highest_size)

    @numba.njit(inline="always", error_model="numpy")  # type: ignore[untyped-decorator]
    def rounded(value: Any) -> Any:
        """To nearest, ties to even, and not beyond 448: the bits of a float32."""
        bits = as_bits(value)
        size = u32(bits & u32(0x7FFFFFFF))
        odd = u32((size >> u32(20)) & u32(1))
        normal = u32((size + u32(0x7FFFF) + odd) & u32(0xFFF00000))
        small = as_bits(f32(f32(as_float(size) + magic) - magic))
        nearest = small if size < smallest_normal else normal
        nearest = nearest if nearest < highest else highest
        return u32(nearest | u32(bits & u32(0x80000000)))

    @numba.njit(inline="always", error_model="numpy")  # type: ignore[untyped-decorator]
    def code_of(bits: Any) -> Any:
        size = u32(bits & u32(0x7FFFFFFF))
        normal = u32((size - lowered) >> u32(20))
        small = u32(as_bits(f32(as_float(size) + magic)) & u32(0xFF))
        code = small if size < smallest_normal else normal
        return np.uint8(code | u32((bits >> u32(24)) & u32(0x80)))

    @jit  # type: ignore[untyped-decorator]
    def encode(
        values: Any,
        before: Any,
        factors: Any,
        stored: Any,
        block_rows: Any,
        block_columns: Any,
        raw: Any,
        found: Any,
    ) -> None:
        codes = np.empty(min(block_columns, values.shape[1]), np.uint8)
        num_changed = u32(0)
        for row in range(values.shape[0]):
            error_squares = value_squares = update_squares = f32(0)
            for start in range(0, values.shape[1], block_columns):
                i, j = row // block_rows, start // block_columns
                factor, scale = factors[i, j], stored[i, j]
                run = values[row, start : start + block_columns]
                old = before[row, start : start + block_columns]
                made = codes[: run.size]
                for k in range(run.size):
                    value, unmoved = run[k], old[k]
                    bits = rounded(value * factor)
                    num_changed = u32(num_changed + u32(bits != rounded(unmoved * factor)))
                    error, update = as_float(bits) * scale - value, value - unmoved
                    error_squares = add(error_squares, error * error)
                    value_squares = add(value_squares, value * value)
                    update_squares = add(update_squares, update * update)
                    made[k] = code_of(bits)
                # A code takes a quarter of its value: later values are not reached yet.
                at = row * values.shape[1] + start
                raw[at : at + run.size] = made
            found[0] += error_squares
            found[1] += value_squares
            found[2] += update_squares
        found[3] = num_changed

    return FusedFp8(decode, largest, encode)
