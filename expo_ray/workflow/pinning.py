"""Reward models at addresses that mean the same whenever and wherever a run goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from expo_ray.checkpoints.opening import is_same_address
from expo_ray.errors import ConfigError, argument, spelled
from expo_ray.rewards import RewardModelSpec, pin_reward_model
from expo_ray.serving.engines.registry import resolve_reward_engine
from expo_ray.workflow.run_dir import reward_label


def pin_reward_models(
    specs: Iterable[str],
    initial: str,
    aligned: str,
    *,
    engine: str,
    addresses: Mapping[str, str] | None = None,
) -> dict[str, RewardModelSpec]:
    """Return reward models by their folder names, each at an address that means the same later.

    Args:
        specs: As recipes have them.
        initial: theta0, for an implicit reward.
        aligned: theta1, for an implicit reward.
        engine: What computes all of them.
        addresses: What specs were pinned to when the run began.

    Raises:
        RequestError: One cannot be parsed, is missing, no reward model, there twice, or not for
            this engine.
    """
    pinned: dict[str, RewardModelSpec] = {}
    for index, text in enumerate(specs):
        spec = RewardModelSpec.parse(text)
        spec = replace(spec, model=(addresses or {}).get(text, spec.model))
        spec = pin_reward_model(spec, initial=initial, aligned=aligned)[0]
        _require_engine(engine, spec)
        for other in pinned.values():
            if _are_one(spec, other):
                raise ConfigError(
                    "a reward model is given twice",
                    where=argument("reward_models"),
                    got=f"{other.text} and {text}",
                    expected="each once: a second opinion guards, the same one does not",
                )
        pinned[reward_label(index, text)] = spec
    return pinned


def check_reward_model(text: str, *, engine: str) -> RewardModelSpec:
    """Return a reward model, looked at by itself: an implicit one has its pair later.

    Args:
        text: As recipes have it.
        engine: What computes it.

    Raises:
        RequestError: It cannot be parsed, is missing, no reward model, or not for this engine.
    """
    spec = RewardModelSpec.parse(text)
    if not spec.kind.needs_pair:
        pin_reward_model(spec, initial=None, aligned=None)
    _require_engine(engine, spec)
    return spec


def _require_engine(engine: str, spec: RewardModelSpec) -> None:
    with spelled(_of_rewarders):
        resolve_reward_engine(engine, spec)


def _of_rewarders(name: str, value: str | None) -> str | None:
    """Tell their engine from that of the generators, which has the same name."""
    if name != "engine":
        return None
    return "rewarders.engine" if value is None else f"rewarders.engine: {value}"


def _are_one(a: RewardModelSpec, b: RewardModelSpec) -> bool:
    return (
        a.kind.name == b.kind.name
        and dict(a.arguments) == dict(b.arguments)
        and is_same_address(a.model, b.model)
    )
