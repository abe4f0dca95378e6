"""What there is to compute on. Light: no torch until a question is asked."""

from __future__ import annotations

import sys

from expo_ray.lazy import quick_imports


def has_gpu() -> bool:
    """Say whether the connected Ray cluster has a GPU, or without one this machine."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return float(ray.cluster_resources().get("GPU", 0)) > 0
    import torch

    return torch.cuda.is_available()


def has_amx() -> bool:
    """Say whether this machine's processor multiplies bfloat16 matrices in tiles."""
    with quick_imports():
        import torch
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))
