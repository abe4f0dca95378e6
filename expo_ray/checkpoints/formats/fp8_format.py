"""How FP8 codes with block scales are stored: names, shapes and dtypes, without values."""

from __future__ import annotations

from dataclasses import dataclass

SCALE_SUFFIX = "_scale_inv"
CODE_DTYPE = "F8_E4M3"


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockFormat:
    """The format of one matrix."""

    block_rows: int
    block_columns: int
    scale_dtype: str
    """Of the stored scales: F32 or BF16."""
    has_power_scales: bool
    """Scales are powers of two (scale_fmt ue8m0 in the quantization config)."""

    @property
    def code_dtype(self) -> str:
        """Of the stored codes."""
        return CODE_DTYPE

    def scale_name(self, name: str) -> str:
        """Return the name of the scales of a tensor."""
        return f"{name}{SCALE_SUFFIX}"

    def scales_of(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of the scales of a matrix; blocks at the edges may be cut."""
        return (-(-shape[0] // self.block_rows), -(-shape[1] // self.block_columns))

    def block_row_elements(self, shape: tuple[int, ...]) -> int:
        """Return the elements of one row of blocks, which are quantized together."""
        return min(self.block_rows, shape[0]) * shape[1]
