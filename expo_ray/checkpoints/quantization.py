"""Quantized weights are refused by name: arithmetic on their codes would give garbage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expo_ray.checkpoints.checkpoint import Checkpoint
from expo_ray.checkpoints.formats.header import LOW_PRECISION_DTYPES
from expo_ray.checkpoints.storages.storage import split_address
from expo_ray.errors import CheckpointError

# The last part of a tensor name, and the kind that writes it.
_SUFFIXES = {
    "qweight": "gptq or awq",
    "qzeros": "gptq or awq",
    "scales": "gptq or awq",
    "g_idx": "gptq",
    "absmax": "bitsandbytes",
    "quant_map": "bitsandbytes",
    "nested_absmax": "bitsandbytes",
    "SCB": "bitsandbytes",
    "weight_format": "bitsandbytes",
    "weight_scale": "fp8",
    "weight_scale_inv": "fp8",
    "input_scale": "fp8",
    "weight_packed": "compressed-tensors",
    "weight_zero_point": "compressed-tensors",
    "W_q": "hqq",
    "codebooks": "aqlm",
    "_data": "quanto",
}
QUANTIZED_BASE_HINT = (
    "the adapter was trained on a quantized base: name the model before quantization, "
    "ADAPTER#base=MODEL"
)
_HINT = "give the checkpoint it was quantized from"
# Of gpt-oss: packed nibbles and exponents, both plain bytes as far as the header tells.
_MXFP4 = ("_blocks", "_scales")


def quantization_of(checkpoint: Checkpoint) -> str | None:
    """Return the kind of quantization with the evidence for it, None for plain weights."""
    parts = (v for k, v in checkpoint.config.items() if k.endswith("_config"))
    for section in (checkpoint.config, *parts):
        if not isinstance(section, Mapping):
            continue
        for key in ("quantization_config", "compression_config"):
            settings = section.get(key)
            if settings:
                method = settings.get("quant_method") if isinstance(settings, Mapping) else None
                return f"{method or 'unknown kind'} ({key} in config.json)"
    for name, ref in checkpoint.tensors.items():
        if ref.dtype in LOW_PRECISION_DTYPES:
            return f"{ref.dtype} (tensor {name!r})"
        last = name.rpartition(".")[2]
        if last in _SUFFIXES or ".quant_state" in name:
            return f"{_SUFFIXES.get(last, 'bitsandbytes')} (tensor {name!r})"
        if ref.dtype == "U8" and last.endswith(_MXFP4):
            return f"mxfp4 (tensor {name!r})"
    return None


def block_size_of(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return (rows, columns) of the blocks of FP8 weights with block scales, None without."""
    settings = config.get("quantization_config")
    if not isinstance(settings, Mapping) or settings.get("quant_method") != "fp8":
        return None
    block = settings.get("weight_block_size")
    fine = isinstance(block, list) and len(block) == 2 and all(type(n) is int for n in block)
    return (block[0], block[1]) if block and fine and min(block) > 0 else None


def refuse_quantized(checkpoint: Checkpoint, *, hint: str | None = None) -> None:
    """Let plain weights pass.

    Args:
        checkpoint: The weights.
        hint: What to do; by default to give the checkpoint before quantization.

    Raises:
        CheckpointError: The weights are quantized.
    """
    kind = quantization_of(checkpoint)
    is_adapter = bool(split_address(checkpoint.uri)[1])
    if kind is not None:
        raise CheckpointError(
            "quantized weights cannot be extrapolated",
            where=checkpoint.uri,
            got=kind,
            expected="float16, bfloat16, float32 or float64 weights",
            hint=hint or (QUANTIZED_BASE_HINT if is_adapter else _HINT),
        )
