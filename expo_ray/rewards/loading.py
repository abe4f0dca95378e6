"""From a `--reward-model` to a reward model that is ready to score."""

from __future__ import annotations

from expo_ray.errors import ConfigError
from expo_ray.rewards.interface import RewardModel
from expo_ray.rewards.spec import RewardModelSpec


def load_reward_model(
    spec: RewardModelSpec | str,
    *,
    initial: str | None = None,
    aligned: str | None = None,
    device: str = "cpu",
) -> RewardModel:
    """Load a reward model.

    Args:
        spec: What `--reward-model` says.
        initial: The pair's checkpoint before alignment; needed by an implicit reward.
        aligned: The pair's aligned checkpoint; needed by an implicit reward.
        device: "cpu" or "cuda".

    Raises:
        ConfigError: The spec cannot be parsed, or the pair is missing.
        CheckpointError: A checkpoint is no reward model, or cannot be loaded.
    """
    if isinstance(spec, str):
        spec = RewardModelSpec.parse(spec)
    if spec.kind == "judge":
        from expo_ray.rewards.judge import JudgeRewardModel

        return JudgeRewardModel(url=spec.url, model=spec.model)
    if spec.kind == "classifier":
        from expo_ray.rewards.classifier import ClassifierRewardModel

        return ClassifierRewardModel(spec.model, device=device)
    if initial is None or aligned is None:
        raise ConfigError(
            "an implicit reward needs the pair",
            where=f"--reward-model {spec.text}",
            expected="--initial and --aligned",
        )
    from expo_ray.rewards.implicit import ImplicitRewardModel

    return ImplicitRewardModel(initial=initial, aligned=aligned, beta=spec.beta, device=device)
