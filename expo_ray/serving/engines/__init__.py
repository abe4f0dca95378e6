"""Engines: what turns token ids into responses inside one replica."""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING

from expo_ray.errors import ConfigError, argument
from expo_ray.extras import missing_modules, require_extra
from expo_ray.lazy import quick_imports

if TYPE_CHECKING:
    from expo_ray.serving.engines.interface import Engine
    from expo_ray.serving.engines.options import EngineOptions

__all__ = ["has_gpu", "make_engine", "pick_engine", "resolve_engine"]

TRANSFORMERS = "transformers"
VLLM = "vllm"
_NAMES = ("auto", TRANSFORMERS, VLLM)
logger = logging.getLogger(__name__)


def resolve_engine(name: str) -> str:
    """Return the engine that a name stands for; what `auto` picks is logged.

    Args:
        name: `auto`, `transformers` or `vllm`.

    Raises:
        ConfigError: No engine has this name.
        MissingExtraError: Its package is not installed.
    """
    return pick_engine(name)[0]


def pick_engine(name: str) -> tuple[str, str]:
    """Return the engine that a name stands for, and why: vLLM where it and a GPU are there.

    Args:
        name: `auto`, `transformers` or `vllm`.

    Raises:
        ConfigError: No engine has this name.
        MissingExtraError: Its package is not installed.
    """
    if name not in _NAMES:
        raise ConfigError(
            "unknown engine", where=argument("engine"), got=name, expected=", ".join(_NAMES)
        )
    if name == VLLM:
        require_extra("vllm", where=argument("engine", VLLM))
    if name != "auto":
        return name, "as asked for"
    if missing_modules("vllm"):
        engine, reason = TRANSFORMERS, "vLLM is not installed"
    elif not has_gpu():
        engine, reason = TRANSFORMERS, "no GPU here"
    else:
        engine, reason = VLLM, "vLLM is installed and there is a GPU"
    logger.info("engine auto: %s (%s)", engine, reason)
    return engine, reason


def has_gpu() -> bool:
    """Say whether the connected Ray cluster has a GPU, or without one this machine."""
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        return float(ray.cluster_resources().get("GPU", 0)) > 0
    import torch

    return torch.cuda.is_available()


def make_engine(name: str, options: EngineOptions | None = None) -> Engine:
    """Return a new embedded engine, which has no weights yet.

    Args:
        name: As `resolve_engine` returns it.
        options: Its settings.
    """
    if name != TRANSFORMERS:
        raise ConfigError(
            "no embedded engine", where=argument("engine"), got=name, expected=TRANSFORMERS
        )
    with quick_imports():
        from expo_ray.serving.engines.transformers_engine import TransformersEngine

    return TransformersEngine(max_model_len=None if options is None else options.max_model_len)
