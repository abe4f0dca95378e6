"""The record of reward models that are checkpoints, of three forms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from expo_ray.rewards.kinds.kind import RewardKind

if TYPE_CHECKING:
    from expo_ray.checkpoints import Checkpoint
    from expo_ray.rewards.checkpoint_kind import CheckpointKind
    from expo_ray.rewards.spec import RewardModelSpec


def _parse(text: str) -> tuple[str, Mapping[str, Any]]:
    return text, {}


def _pin(spec: RewardModelSpec) -> RewardModelSpec:
    from expo_ray.checkpoints import open_checkpoint
    from expo_ray.rewards.checkpoint_kind import checkpoint_kind

    checkpoint = open_checkpoint(spec.model)
    checkpoint_kind(checkpoint)
    return replace(spec, model=checkpoint.uri)


def _version(spec: RewardModelSpec) -> object:
    from expo_ray.checkpoints import open_checkpoint

    return open_checkpoint(spec.model).version()


def _classifier(spec: RewardModelSpec) -> Checkpoint | None:
    from expo_ray.checkpoints import open_checkpoint
    from expo_ray.rewards.checkpoint_kind import checkpoint_kind

    checkpoint = open_checkpoint(spec.model)
    return checkpoint if checkpoint_kind(checkpoint) == "one-label" else None


def _load(spec: RewardModelSpec, **how: Any) -> Any:
    from expo_ray.checkpoints import open_checkpoint
    from expo_ray.rewards.checkpoint_kind import checkpoint_kind

    checkpoint = open_checkpoint(spec.model)
    model_class = _CLASSES[checkpoint_kind(checkpoint)]()
    return model_class(checkpoint, name=spec.text, **how)


def _one_label() -> Any:
    from expo_ray.rewards.classifier import ClassifierRewardModel

    return ClassifierRewardModel


def _gated() -> Any:
    from expo_ray.rewards.gated import GatedRewardModel

    return GatedRewardModel


def _pairwise() -> Any:
    from expo_ray.rewards.pairwise import PairwiseRewardModel

    return PairwiseRewardModel


_CLASSES: dict[CheckpointKind, Any] = {
    "one-label": _one_label,
    "gated": _gated,
    "pairwise": _pairwise,
}

CHECKPOINT = RewardKind(
    name="classifier",
    prefix="",
    form="a checkpoint",
    parse=_parse,
    pin=_pin,
    load=_load,
    version=_version,
    classifier=_classifier,
)
