"""The reward replica: one reward model, which takes its batches one after another."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from expo_ray.errors import ExpoError
from expo_ray.rewards import RewardModel, RewardModelSpec, RewardScore, load_reward_model
from expo_ray.tables.prompts import Message


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """The scores of a chunk, and which reward model gave them."""

    name: str
    revision: str
    scores: list[RewardScore]
    error: ExpoError | None = None
    """Why there is no reward model. A value, because an exception would lose its type."""


class Rewarder:
    """One replica.

    Args:
        spec: Which reward model.
        initial: For an implicit reward: the checkpoint before alignment.
        aligned: For an implicit reward: the aligned one.
    """

    def __init__(
        self, spec: RewardModelSpec, initial: str | None = None, aligned: str | None = None
    ) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reward-model")
        self._model: RewardModel | None = None
        self._error: ExpoError | None = None
        try:
            self._model = load_reward_model(
                spec, initial=initial, aligned=aligned, device=_device()
            )
        except ExpoError as error:
            self._error = error

    async def score(self, chats: Sequence[Sequence[Message]]) -> Scored:
        """Score chats; an empty list asks only who scores."""
        if self._model is None:
            return Scored(name="", revision="", scores=[], error=self._error)
        scores = await asyncio.get_running_loop().run_in_executor(
            self._thread, self._model.score, chats
        )
        return Scored(name=self._model.name, revision=self._model.revision, scores=scores)


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
