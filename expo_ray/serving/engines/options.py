"""What a user may set of an engine. Light: no torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from expo_ray.errors import ConfigError, argument
from expo_ray.flags import Flag, require_first
from expo_ray.json_text import parse_json

ENGINE_PANEL = "Engine"


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
                "not an engine argument",
                where=argument("engine_args"),
                got=pair,
                expected="name=value",
            )
        try:
            value = parse_json(text)
        except ValueError:
            value = {"True": True, "False": False, "None": None}.get(text, text)
        name = name.strip().lstrip("-").replace("-", "_")
        require_first(name, found, setting="engine_args", text=pair)
        found[name] = value
    return found


class EngineOptions(BaseModel):
    """Settings of an engine beyond the defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_model_len: Annotated[int | None, Flag(panel=ENGINE_PANEL)] = Field(
        None, ge=1, description="Tokens of prompt and response; by default the model's context."
    )
    tensor_parallel_size: Annotated[int, Flag(panel=ENGINE_PANEL)] = Field(
        1, ge=1, description="Devices that share each layer (vllm only)."
    )
    engine_args: Annotated[
        dict[str, Any],
        Flag(
            name="--engine-arg",
            panel=ENGINE_PANEL,
            metavar="K=V",
            parse=parse_engine_args,
            repeats=True,
        ),
    ] = Field(
        default_factory=dict,
        description="vLLM's own engine arguments, such as pipeline_parallel_size=2.",
    )

    @property
    def options(self) -> EngineOptions:
        """These alone, of settings that hold others too."""
        return EngineOptions(**self.model_dump(include=set(EngineOptions.model_fields)))

    @property
    def num_workers(self) -> int:
        """How many devices a replica takes."""
        sizes = {"tensor_parallel_size": self.tensor_parallel_size, **self.engine_args}
        return int(sizes["tensor_parallel_size"]) * int(sizes.get("pipeline_parallel_size", 1))

    @property
    def has_engine_args(self) -> bool:
        """Whether anything is set that not every engine has."""
        return bool(self.engine_args) or self.tensor_parallel_size != 1
