"""Compiled casts between the dtypes of weights, by their bits, and float32. Of numba, an extra."""

from __future__ import annotations

import functools
import platform
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from expo_ray.compiling import bit_casts, intrinsic_of

FUSED_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
INFINITY = {torch.bfloat16: 0x7F80, torch.float16: 0x7C00, torch.float32: 0x7F800000}
BITS = {torch.bfloat16: np.uint16, torch.float16: np.uint16, torch.float32: np.uint32}

Bits = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


def bits_of(values: torch.Tensor) -> Bits:
    """Return the bits of values, as a view."""
    integer = torch.int32 if values.dtype == torch.float32 else torch.int16
    bits: Bits = values.view(integer).numpy().view(BITS[values.dtype])
    return bits


def values_of(bits: Bits, dtype: torch.dtype) -> torch.Tensor:
    """Return the values that bits are of a dtype, as a view."""
    signed = bits.view(np.int32 if dtype == torch.float32 else np.int16)
    return torch.from_numpy(signed).view(dtype)


def max_abs_of(bits: float, dtype: torch.dtype) -> float:
    """Return the value of the largest bits without sign."""
    if dtype == torch.float16:
        return float(np.uint16(bits).view(np.float16))
    shift = 16 if dtype == torch.bfloat16 else 0
    return float(np.uint32(int(bits) << shift).view(np.float32))


def are_fused(*dtypes: torch.dtype) -> bool:
    """Whether there can be a kernel for some dtypes on this processor."""
    if not all(dtype in FUSED_DTYPES for dtype in dtypes):
        return False
    return torch.float16 not in dtypes or _converts_half()


def _converts_half() -> bool:
    """Tell whether the processor itself converts float16, as nearly all of this decade do."""
    try:
        from llvmlite import binding
    except ImportError:
        return True  # a kernel that cannot be built tells so
    is_x86 = platform.machine().lower() in ("x86_64", "amd64")
    return not is_x86 or bool(binding.get_host_cpu_features().get("f16c"))


@functools.cache
def reader_of(dtype: torch.dtype) -> Any:
    """Return a compiled function from the bits of a value to the float32 it is."""
    import numba
    from llvmlite import ir

    single, half, i32 = ir.FloatType(), ir.HalfType(), ir.IntType(32)

    def widen_bfloat16(builder: Any, bits: Any) -> Any:
        return builder.bitcast(builder.shl(builder.zext(bits, i32), i32(16)), single)

    def widen_half(builder: Any, bits: Any) -> Any:
        return builder.fpext(builder.bitcast(bits, half), single)

    if dtype == torch.float32:
        return bit_casts().as_float
    emit = widen_bfloat16 if dtype == torch.bfloat16 else widen_half
    return intrinsic_of(numba.uint16, numba.float32, emit)


@functools.cache
def writer_of(dtype: torch.dtype) -> Any:
    """Return a compiled function from a float32 to the bits of the nearest value, ties to even."""
    import numba
    from llvmlite import ir

    half, i16, i32 = ir.HalfType(), ir.IntType(16), ir.IntType(32)

    def round_to_bfloat16(builder: Any, value: Any) -> Any:
        # As a cast to bfloat16 does for all but NaN.
        bits = builder.bitcast(value, i32)
        odd = builder.and_(builder.lshr(bits, i32(16)), i32(1))
        rounded = builder.add(bits, builder.add(odd, i32(0x7FFF)))
        return builder.trunc(builder.lshr(rounded, i32(16)), i16)

    def round_to_half(builder: Any, value: Any) -> Any:
        return builder.bitcast(builder.fptrunc(value, half), i16)

    if dtype == torch.float32:
        return bit_casts().as_bits
    emit = round_to_bfloat16 if dtype == torch.bfloat16 else round_to_half
    return intrinsic_of(numba.float32, numba.uint16, emit)
