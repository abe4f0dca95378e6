"""What a user may set of an engine. Light: no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from expo_ray.errors import ConfigError
from expo_ray.json_text import parse_json


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineOptions:
    """Settings of an engine beyond the defaults."""

    max_model_len: int | None = None
    """Tokens of prompt and response together; None takes the model's own context."""
    tensor_parallel_size: int = 1
    """Devices that share each layer (vLLM)."""
    engine_args: Mapping[str, Any] = field(default_factory=dict)
    """vLLM's own engine arguments, by their Python names."""

    @property
    def num_workers(self) -> int:
        """How many devices a replica takes."""
        sizes = {"tensor_parallel_size": self.tensor_parallel_size, **self.engine_args}
        return int(sizes["tensor_parallel_size"]) * int(sizes.get("pipeline_parallel_size", 1))

    def require_none_for(self, engine: str) -> None:
        """Check that nothing is set that an engine without such settings would ignore.

        Raises:
            ConfigError: Something is.
        """
        if self.engine_args or self.tensor_parallel_size != 1:
            raise ConfigError(
                f"the {engine} engine has no such settings",
                where="--engine-arg, --tensor-parallel-size",
                got=f"{dict(self.engine_args)}, tensor_parallel_size={self.tensor_parallel_size}",
                hint="choose --engine vllm, or leave them out",
            )


def parse_engine_args(pairs: Sequence[str]) -> dict[str, Any]:
    """Return engine arguments from `name=value` texts; a value is JSON where it can be read so.

    Args:
        pairs: Such as `pipeline_parallel_size=2` or `kv_cache_dtype=fp8`.

    Raises:
        ConfigError: A text has no name or no value.
    """
    found: dict[str, Any] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise ConfigError(
                "not an engine argument", where="--engine-arg", got=pair, expected="name=value"
            )
        try:
            value = parse_json(text)
        except ValueError:
            value = {"True": True, "False": False, "None": None}.get(text, text)
        found[name.strip().lstrip("-").replace("-", "_")] = value
    return found
