"""Engines: what turns token ids into responses inside one replica."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from expo_ray.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from expo_ray.serving.engines.interface import Engine

__all__ = ["make_engine", "resolve_engine"]

TRANSFORMERS = "transformers"
_NAMES = ("auto", TRANSFORMERS, "vllm")


def resolve_engine(name: str) -> str:
    """Return the engine that a name stands for.

    Args:
        name: `auto`, `transformers` or `vllm`.

    Raises:
        ConfigError: No engine has this name, or it is not available yet.
        MissingExtraError: Its package is not installed.
    """
    if name not in _NAMES:
        raise ConfigError("unknown engine", where="--engine", got=name, expected=", ".join(_NAMES))
    if name != "vllm":
        return TRANSFORMERS
    if find_spec("vllm") is None:
        raise MissingExtraError(
            "vLLM is not installed", where="--engine vllm", hint="pip install 'expo-ray[vllm]'"
        )
    raise ConfigError(
        "the vLLM engine is not available yet",
        where="--engine",
        got=name,
        expected=TRANSFORMERS,
        hint="leave --engine out",
    )


def make_engine(name: str) -> Engine:
    """Return a new engine, which has no weights yet.

    Args:
        name: As `resolve_engine` returns it.
    """
    if name != TRANSFORMERS:
        raise ConfigError("unknown engine", where="--engine", got=name, expected=TRANSFORMERS)
    from expo_ray.serving.engines.transformers_engine import TransformersEngine

    return TransformersEngine()
