"""From a `--reward-model` to a reward model that is ready to score."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from expo_ray.checkpoints import open_checkpoint
from expo_ray.checkpoints.opening import open_aligned
from expo_ray.errors import ConfigError, argument
from expo_ray.lazy import quick_imports
from expo_ray.rewards.interface import RewardModel
from expo_ray.rewards.spec import RewardModelSpec


def load_reward_model(
    spec: RewardModelSpec | str,
    *,
    initial: str | None = None,
    aligned: str | None = None,
    device: str = "cpu",
    dtype: str | None = None,
    truncate: bool = False,
) -> RewardModel:
    """Load a reward model.

    Args:
        spec: What `--reward-model` says.
        initial: The pair's checkpoint before alignment; needed by an implicit reward.
        aligned: The pair's aligned checkpoint; needed by an implicit reward.
        device: "cpu" or "cuda".
        dtype: Compute in `float32`, `bfloat16` or `float16`; None takes float32 on the CPU, else
            the checkpoint's. The head stays in float32.
        truncate: Leave out the beginning of chats that are too long, instead of refusing them, and
            mark their scores. A judge decides for itself what it reads.

    Raises:
        ConfigError: The spec cannot be parsed, or the pair is missing.
        CheckpointError: A checkpoint is no reward model, or cannot be loaded.
    """
    if isinstance(spec, str):
        spec = RewardModelSpec.parse(spec)
    kind = spec.kind
    pair = {"initial": initial, "aligned": aligned} if kind.needs_pair else {}
    if None in pair.values():
        raise _lacks_its_pair(spec)
    if not kind.has_dtypes:
        loaded: RewardModel = kind.load(spec, **pair)
        return loaded
    with quick_imports():
        import torch

        import expo_ray.rewards.pretrained  # noqa: F401 - transformers, which all of these need

    if dtype not in (None, "float32", "bfloat16", "float16"):
        raise ConfigError(
            "unknown dtype", where="dtype", got=dtype, expected="float32, bfloat16 or float16"
        )
    how: dict[str, Any] = {"device": device, "dtype": dtype and getattr(torch, dtype)}
    model = kind.load(spec, **pair, **how)
    if truncate:
        let_truncate(model)
    loaded = model
    return loaded


def let_truncate(model: Any) -> None:
    """Let a model that computes leave out the beginning of chats that are too long."""
    model.truncates = True
    model.settings += " truncates"


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
    pinned = spec.kind.pin(spec)
    if not spec.kind.needs_pair:
        return pinned, None, None
    if initial is None or aligned is None:
        raise _lacks_its_pair(spec)
    first = open_checkpoint(initial)
    return pinned, first.uri, open_aligned(aligned, first).uri


def _lacks_its_pair(spec: RewardModelSpec) -> ConfigError:
    return ConfigError(
        "an implicit reward needs the pair",
        where=argument("reward_model", spec.text),
        expected=f"{argument('initial')} and {argument('aligned')}",
    )
