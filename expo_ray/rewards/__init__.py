"""Reward models as plain callables: checkpoints of three forms, a pair, judges over HTTP."""

from typing import TYPE_CHECKING

from expo_ray.lazy import lazy_exports

if TYPE_CHECKING:
    from expo_ray.rewards.interface import RewardModel, RewardScore
    from expo_ray.rewards.loading import load_reward_model, pin_reward_model
    from expo_ray.rewards.score_cache import CachedRewardModel
    from expo_ray.rewards.self_test import SelfTest, batch_spread, run_self_test
    from expo_ray.rewards.spec import RewardModelSpec

__all__ = [
    "CachedRewardModel",
    "RewardModel",
    "RewardModelSpec",
    "RewardScore",
    "SelfTest",
    "batch_spread",
    "load_reward_model",
    "pin_reward_model",
    "run_self_test",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "RewardModel": "interface",
        "RewardScore": "interface",
        "CachedRewardModel": "score_cache",
        "SelfTest": "self_test",
        "batch_spread": "self_test",
        "run_self_test": "self_test",
        "load_reward_model": "loading",
        "pin_reward_model": "loading",
        "RewardModelSpec": "spec",
    },
)
