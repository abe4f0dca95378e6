"""Reward models at addresses that mean the same whenever and wherever a run goes on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from expo_ray.rewards import RewardModelSpec, pin_reward_model
from expo_ray.workflow.run_dir import reward_label


def pin_reward_models(
    specs: Iterable[str], initial: str, aligned: str, *, addresses: Mapping[str, str] | None = None
) -> dict[str, RewardModelSpec]:
    """Return reward models by their folder names, each at an address that means the same later.

    Args:
        specs: As recipes have them.
        initial: theta0, for an implicit reward.
        aligned: theta1, for an implicit reward.
        addresses: What specs were pinned to when the run began.

    Raises:
        RequestError: One cannot be parsed, is missing, or is no reward model.
    """
    pinned = {}
    for index, text in enumerate(specs):
        spec = RewardModelSpec.parse(text)
        spec = replace(spec, model=(addresses or {}).get(text, spec.model))
        pinned[reward_label(index, text)] = pin_reward_model(
            spec, initial=initial, aligned=aligned
        )[0]
    return pinned
