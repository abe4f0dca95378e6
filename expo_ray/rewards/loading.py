"""From a `--reward-model` to a reward model that is ready to score."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from expo_ray.checkpoints import Checkpoint
from expo_ray.checkpoints.checkpoint import open_aligned
from expo_ray.errors import ConfigError
from expo_ray.rewards.classifier_config import check_classifier_config
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

        return ClassifierRewardModel(spec.model, name=spec.text, device=device)
    if initial is None or aligned is None:
        raise _lacks_its_pair(spec)
    from expo_ray.rewards.implicit import ImplicitRewardModel

    return ImplicitRewardModel(initial=initial, aligned=aligned, beta=spec.beta, device=device)


def pin_reward_model(
    spec: RewardModelSpec, *, initial: str | Path | None, aligned: str | Path | None
) -> tuple[RewardModelSpec, str | None, str | None]:
    """Return a reward model and its pair by addresses that mean the same on every node.

    Paths become absolute, revisions on the Hub commits. Only headers and configs are read: a
    checkpoint that is no reward model shows before anything is started.

    Args:
        spec: What was asked for.
        initial: For an implicit reward: the checkpoint before alignment.
        aligned: For an implicit reward: the aligned one.

    Raises:
        ConfigError: An implicit reward lacks its pair.
        CheckpointError: A checkpoint is missing, malformed, or no reward model.
    """
    if spec.kind == "classifier":
        checkpoint = Checkpoint.open(spec.model)
        check_classifier_config(checkpoint)
        return replace(spec, model=checkpoint.uri), None, None
    if spec.kind != "implicit":
        return spec, None, None
    if initial is None or aligned is None:
        raise _lacks_its_pair(spec)
    first = Checkpoint.open(initial)
    return spec, first.uri, open_aligned(aligned, first).uri


def _lacks_its_pair(spec: RewardModelSpec) -> ConfigError:
    return ConfigError(
        "an implicit reward needs the pair",
        where=f"--reward-model {spec.text}",
        expected="--initial and --aligned",
    )
