"""Reward models as plain callables: classifiers, implicit rewards of a pair, judges over HTTP."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expo_ray.rewards.interface import RewardModel, RewardScore, batch_spread
    from expo_ray.rewards.loading import load_reward_model
    from expo_ray.rewards.spec import RewardModelSpec

__all__ = ["RewardModel", "RewardModelSpec", "RewardScore", "batch_spread", "load_reward_model"]

_MODULES = {
    "RewardModel": "interface",
    "RewardScore": "interface",
    "batch_spread": "interface",
    "load_reward_model": "loading",
    "RewardModelSpec": "spec",
}


def __getattr__(name: str) -> object:
    # Lazy (PEP 562): importing the package must not import torch.
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
