"""Quantized weights are refused by name: arithmetic on their codes would give garbage."""

from __future__ import annotations

from collections.abc import Mapping

from expo_ray.checkpoints.checkpoint import Checkpoint
from expo_ray.checkpoints.header import LOW_PRECISION_DTYPES
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
}


def quantization_of(checkpoint: Checkpoint) -> str | None:
    """Return the kind of quantization with the evidence for it, None for plain weights."""
    for section in (checkpoint.config, checkpoint.config.get("text_config")):
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
    return None


def refuse_quantized(checkpoint: Checkpoint) -> None:
    """Let plain weights pass.

    Raises:
        CheckpointError: The weights are quantized.
    """
    kind = quantization_of(checkpoint)
    if kind is not None:
        raise CheckpointError(
            "quantized weights cannot be extrapolated",
            where=checkpoint.uri,
            got=kind,
            expected="float16, bfloat16, float32 or float64 weights",
            hint="give the checkpoint it was quantized from",
        )
