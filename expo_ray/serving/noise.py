"""Noise that is a pure function of (seed, position, token): no state, no order, no batch.

Shapes: B rows of a batch, K candidate tokens. All arithmetic is on int64, where torch wraps
around as unsigned 64-bit integers do.
"""

from __future__ import annotations

import torch

_GOLDEN = 0x9E3779B97F4A7C15 - 2**64
_MIX_1 = 0xBF58476D1CE4E5B9 - 2**64
_MIX_2 = 0x94D049BB133111EB - 2**64


def gumbel_noise(
    seeds_b: torch.Tensor, position: int | torch.Tensor, tokens_bk: torch.Tensor
) -> torch.Tensor:
    """Return Gumbel(0, 1) noise in float64, one value per (seed, position, token).

    Args:
        seeds_b: int64, the seed of each row.
        position: Which generated token, from 0: one for all rows, or int64 [B].
        tokens_bk: int64, token ids; [K] where they are the same for all rows.
    """
    # Each of the three parts passes through its own round, so that neighbours do not cancel.
    step = (torch.as_tensor(position, device=seeds_b.device) + 1) * _GOLDEN
    row_b1 = _mix(_mix(seeds_b) + step)[:, None]
    bits_bk = _mix(row_b1 + (tokens_bk + 1) * _GOLDEN)
    # 53 bits, half a step off 0 and 1: neither logarithm meets a zero.
    uniform_bk = (_shift_right(bits_bk, 11).double() + 0.5) * 2.0**-53
    return -torch.log(-torch.log(uniform_bk))


def _mix(x: torch.Tensor) -> torch.Tensor:
    """SplitMix64's finalizer (Steele, Lea and Flood, 2014)."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def _shift_right(x: torch.Tensor, num_bits: int) -> torch.Tensor:
    # int64 >> copies the sign; the mask makes it the shift of an unsigned integer.
    return (x >> num_bits) & ((1 << (64 - num_bits)) - 1)
