"""In which dtype an engine computes on a CPU, and what that means for repeating a run.

Light: no torch until a question is asked. On GPUs every engine takes the weights' own dtype.
"""

from __future__ import annotations

from expo_ray.checkpoints import Checkpoint
from expo_ray.serving.engines.devices import has_amx, has_gpu
from expo_ray.serving.engines.kind import FLOAT32, EngineKind
from expo_ray.serving.engines.options import EngineOptions
from expo_ray.serving.source import ModelSource

BFLOAT16 = "bfloat16"
_BF16_HEADER = "BF16"


def cpu_dtype(checkpoint: Checkpoint) -> str:
    """Return what vLLM computes in on this machine's processor, unless an argument says it.

    bfloat16 halves the time where the processor multiplies it in tiles (AMX), and only there: with
    AVX-512 alone (avx512_bf16) the layers of a 135M model took as long as in float32 at 1 and 16
    rows, and 1.6 times as long at 256. Weights that are not bfloat16 would be rounded.
    """
    is_bfloat16 = all(
        ref.dtype == _BF16_HEADER for ref in checkpoint.tensors.values() if len(ref.shape) > 1
    )
    return BFLOAT16 if is_bfloat16 and has_amx() else FLOAT32


def describe_precision(kind: EngineKind, source: ModelSource, options: EngineOptions) -> str:
    """Return in words what a CPU computes in, why, and what that costs; nothing with a GPU.

    Args:
        kind: Which engine.
        source: Which weights.
        options: Settings of the engine.
    """
    if has_gpu():
        return ""
    dtype, why = kind.precision(source, options)
    if dtype == FLOAT32:
        return f"CPU, {dtype}{why}: an answer does not depend on what else is in its batch"
    return (
        f"CPU, {dtype}{why}: an answer may vary with what else is in its batch; "
        "--engine-arg dtype=float32 gives the same every time"
    )
