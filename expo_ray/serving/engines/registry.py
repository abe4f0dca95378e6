"""The engines there are. A new one is a file beside this one and a line in `ENGINES`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from expo_ray.errors import ConfigError, argument
from expo_ray.serving.engines.kind import EngineKind
from expo_ray.serving.engines.options import EngineOptions
from expo_ray.serving.engines.transformers import Transformers
from expo_ray.serving.engines.vllm import VLLM

if TYPE_CHECKING:
    from expo_ray.rewards import RewardModelSpec

AUTO = "auto"
ENGINES: dict[str, EngineKind] = {kind.name: kind for kind in (VLLM(), Transformers())}
"""By name; `auto` takes the first that suits."""

logger = logging.getLogger(__name__)


def engine_names() -> list[str]:
    """Return what `--engine` and recipes take."""
    return [AUTO, *sorted(ENGINES)]


def auto_rule() -> str:
    """Return in words what `auto` takes."""
    rules = [f"{kind.name} {kind.auto_when}" for kind in ENGINES.values() if kind.auto_when]
    return f"{AUTO}: {'; '.join(rules)}."


def engine_help() -> str:
    """Return what `--help` says of the choice."""
    return f"{', '.join(sorted(ENGINES))}, or {auto_rule()}"


def resolve_engine(name: str) -> EngineKind:
    """Return the engine that a name stands for; what `auto` picks is logged.

    Args:
        name: One of `engine_names`.

    Raises:
        ConfigError: No engine has this name.
        MissingExtraError: It is not installed.
    """
    return pick_engine(name)[0]


def pick_engine(name: str) -> tuple[EngineKind, str]:
    """Return the engine that a name stands for, and why it was taken.

    Args:
        name: One of `engine_names`.

    Raises:
        ConfigError: No engine has this name.
        MissingExtraError: It is not installed.
    """
    _require_known(name, engine_names())
    if name != AUTO:
        ENGINES[name].require()
        return ENGINES[name], "as asked for"
    passed_over: list[str] = []
    for kind in ENGINES.values():
        is_taken, why = kind.suits()
        if is_taken:
            reason = why or "; ".join(passed_over)
            logger.info("engine auto: %s (%s)", kind.name, reason)
            return kind, reason
        passed_over += [why] if why else []
    raise AssertionError("one engine suits everywhere")


def reward_engine_names() -> list[str]:
    """Return what computes reward models: none is picked, since scores of two may differ."""
    return sorted(name for name, kind in ENGINES.items() if kind.reward_models)


def reward_engine_help() -> str:
    """Return what `--help` and recipes say of the choice for reward models."""
    return "; ".join(f"{name}: {ENGINES[name].reward_models}" for name in reward_engine_names())


def resolve_reward_engine(name: str, spec: RewardModelSpec) -> EngineKind:
    """Return the engine that a name stands for, which computes a reward model.

    Args:
        name: One of `reward_engine_names`.
        spec: Pinned; its headers and its config are looked at.

    Raises:
        ConfigError: No engine has this name, or it does not compute this reward model.
        MissingExtraError: It is not installed.
    """
    _require_known(name, reward_engine_names())
    kind = ENGINES[name]
    kind.require()
    kind.check_reward_model(spec)
    return kind


def _require_known(name: str, names: list[str]) -> None:
    if name not in names:
        expected = ", ".join(names)
        raise ConfigError("unknown engine", where=argument("engine"), got=name, expected=expected)


def engines_with_args() -> list[str]:
    """Return which engines have arguments of their own, and share layers among devices."""
    return sorted(kind.name for kind in ENGINES.values() if kind.takes_engine_args)


def require_options(kind: EngineKind, options: EngineOptions) -> None:
    """Check that nothing is set that an engine would ignore.

    Raises:
        ConfigError: Something is.
    """
    if options.has_engine_args and not kind.takes_engine_args:
        choices = " or ".join(argument("engine", name) for name in engines_with_args())
        raise ConfigError(
            f"the {kind.name} engine has no such settings",
            where=f"{argument('engine_args')}, {argument('tensor_parallel_size')}",
            got=f"{options.engine_args}, tensor_parallel_size={options.tensor_parallel_size}",
            hint=f"choose {choices}, or leave them out",
        )
