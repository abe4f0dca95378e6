"""FP8 codes with block scales, made again for extrapolated values; and what that rounding costs.

For every block (of the size that aligned's quantization config states; blocks at the edges are
cut) of float32 values, as DeepSeek V3 publishes its weights and transformers quantizes:

    largest = max |value|                               in the block
    scale   = 448 * (1 / largest)                       1 where largest < 2**-100
    stored  = 1 / scale                                 float32
    code    = e4m3(clamp(value * scale, -448, 448))     to nearest, ties to even

`stored` is written as `NAME_scale_inv`, so that code * stored is the value. Under scale_fmt ue8m0
stored is raised to the next power of two; where aligned stores its scales in bfloat16, it is
rounded to that. In these two cases scale is 1 / stored, so that codes fit what is written.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from expo_ray.checkpoints.computed.fused_fp8 import FP8_MAX, FusedFp8
from expo_ray.checkpoints.formats.fp8_format import BlockFormat
from expo_ray.extrapolation.arithmetic.formula import BLOCK_ELEMENTS
from expo_ray.extrapolation.arithmetic.statistics import OutputSums, count_different

SMALLEST = 2.0**-100


def block_scales(
    largest: torch.Tensor, block_format: BlockFormat
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the stored scales, in their dtype, and the factors that give codes, in float32.

    Args:
        largest: The largest magnitude of every block, float32.
        block_format: How aligned stores its scales.
    """
    whole = torch.where(largest < SMALLEST, FP8_MAX, largest)  # gives a factor of 1
    factors = FP8_MAX * whole.reciprocal()
    stored = factors.reciprocal()
    if block_format.has_power_scales:
        mantissa, exponent = torch.frexp(stored)
        stored = torch.ldexp(torch.ones_like(stored), exponent - (mantissa == 0.5).int())
    if block_format.scale_dtype == "BF16":
        stored = stored.bfloat16()
    elif not block_format.has_power_scales:
        return stored, factors
    return stored, stored.float().reciprocal()


def requantize(
    values: torch.Tensor,
    aligned: torch.Tensor,
    scales: torch.Tensor,
    block_format: BlockFormat,
    fused: FusedFp8 | None = None,
) -> tuple[torch.Tensor, OutputSums]:
    """Turn whole rows of blocks into codes, in the place of the values.

    Args:
        values: (rows, columns) float32, contiguous; the last row of blocks may be cut. They are
            overwritten.
        aligned: As many values, to tell which updates change a code.
        scales: One row per row of blocks, filled with the stored scales.
        block_format: Size of the blocks and dtype of the scales.
        fused: Does the same in fewer passes.

    Returns:
        The codes, flat, at the start of the memory of `values`; and what the rounding cost.

    Raises:
        OverflowError: A value is not finite.
    """
    sums = OutputSums(rounding=[0.0, 0.0, 0.0])
    raw = values.view(-1).view(torch.uint8)[: values.numel()]
    if fused is not None and values.numel():
        block = (block_format.block_rows, block_format.block_columns)
        stored, factors = _scales_of(fused.largest_of(values, block), block_format, sums)
        scales[: len(stored)].copy_(stored)
        found = fused.encode(values, aligned, factors, stored.float(), block)
        sums.num_changed, sums.rounding = found.num_changed, list(found.squares)
        return raw.view(torch.float8_e4m3fn), sums
    num_rows, num_columns = values.shape
    for index, start in enumerate(range(0, num_rows, block_format.block_rows)):
        stop = min(start + block_format.block_rows, num_rows)
        largest = _largest(values, start, stop, block_format.block_columns)
        stored, factors = _scales_of(largest, block_format, sums)
        scales[index].copy_(stored)
        wide = _by_column(factors, stored, block_format.block_columns, num_columns)
        for first, last in _pieces(start, stop, num_columns):
            codes = _round(values[first:last], aligned[first:last], wide, sums)
            # A code takes a quarter of its value: later values are not reached yet.
            raw[first * num_columns : last * num_columns].copy_(codes.view(torch.uint8).view(-1))
    return raw.view(torch.float8_e4m3fn), sums


def _scales_of(
    largest: torch.Tensor, block_format: BlockFormat, sums: OutputSums
) -> tuple[torch.Tensor, torch.Tensor]:
    if not bool(torch.isfinite(largest).all()):
        raise OverflowError("FP8 blocks hold finite values only")
    sums.max_abs = max(sums.max_abs, float(largest.max()))
    return block_scales(largest, block_format)


def _by_column(
    factors: torch.Tensor, stored: torch.Tensor, block_columns: int, num_columns: int
) -> tuple[torch.Tensor, torch.Tensor]:
    wide = (t.repeat_interleave(block_columns)[:num_columns] for t in (factors, stored.float()))
    first, second = wide
    return first, second


def _largest(values: torch.Tensor, start: int, stop: int, block_columns: int) -> torch.Tensor:
    missing = -values.shape[1] % block_columns
    found = None
    for first, last in _pieces(start, stop, values.shape[1]):
        sizes = torch.nn.functional.pad(values[first:last].abs(), (0, missing))
        piece = sizes.view(last - first, -1, block_columns).amax(dim=(0, 2))
        found = piece if found is None else torch.maximum(found, piece)
    return torch.zeros(0) if found is None else found


def _pieces(start: int, stop: int, num_columns: int) -> Iterator[tuple[int, int]]:
    step = max(1, BLOCK_ELEMENTS // max(1, num_columns))
    return ((first, min(first + step, stop)) for first in range(start, stop, step))


def _round(
    values: torch.Tensor,
    aligned: torch.Tensor,
    scales: tuple[torch.Tensor, torch.Tensor],
    sums: OutputSums,
) -> torch.Tensor:
    """Return codes, given the factor and the stored scale of every column."""
    factors, stored = scales
    codes, unmoved = ((t * factors).clamp_(-FP8_MAX, FP8_MAX) for t in (values, aligned))
    codes, unmoved = codes.to(torch.float8_e4m3fn), unmoved.to(torch.float8_e4m3fn)
    sums.num_changed += count_different(codes, unmoved)
    error = codes.float().mul_(stored).sub_(values)
    parts = (error, values, values - aligned)
    for i, part in enumerate(parts):
        flat = part.reshape(-1)
        sums.rounding[i] += float(torch.dot(flat, flat))
    return codes
