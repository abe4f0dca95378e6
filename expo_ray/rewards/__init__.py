"""Reward models as plain callables: classifiers, implicit rewards of a pair, judges over HTTP."""

from typing import TYPE_CHECKING

from expo_ray.lazy import lazy_exports

if TYPE_CHECKING:
    from expo_ray.rewards.interface import RewardModel, RewardScore, batch_spread
    from expo_ray.rewards.loading import load_reward_model, pin_reward_model
    from expo_ray.rewards.spec import RewardModelSpec

__all__ = [
    "RewardModel",
    "RewardModelSpec",
    "RewardScore",
    "batch_spread",
    "load_reward_model",
    "pin_reward_model",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "RewardModel": "interface",
        "RewardScore": "interface",
        "batch_spread": "interface",
        "load_reward_model": "loading",
        "pin_reward_model": "loading",
        "RewardModelSpec": "spec",
    },
)
