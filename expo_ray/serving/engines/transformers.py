"""The record of the transformers engine: embedded, and there wherever expo-ray is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from expo_ray.lazy import quick_imports
from expo_ray.serving.engines.embedded import EmbeddedEngine

if TYPE_CHECKING:
    from expo_ray.rewards import RewardModel, RewardModelSpec
    from expo_ray.serving.engines.interface import Engine
    from expo_ray.serving.engines.options import EngineOptions


class Transformers(EmbeddedEngine):
    """`generate` of transformers, on the CPU or on one CUDA device per replica."""

    name = "transformers"
    reward_models = "every reward model"

    def suits(self) -> tuple[bool, str]:
        """Return whether `auto` takes it: where nothing before it does."""
        return True, ""

    def load_reward_model(
        self,
        spec: RewardModelSpec,
        *,
        initial: str | None,
        aligned: str | None,
        device: str,
        truncate: bool,
    ) -> RewardModel:
        """Return a reward model of any kind, see `EngineKind`."""
        from expo_ray.rewards import load_reward_model

        return load_reward_model(
            spec, initial=initial, aligned=aligned, device=device, truncate=truncate
        )

    def make(self, options: EngineOptions) -> Engine:
        """Return a new engine, which has no weights yet."""
        with quick_imports():
            from expo_ray.serving.engines.transformers_engine import TransformersEngine

        return TransformersEngine(max_model_len=options.max_model_len)
