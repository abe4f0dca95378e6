"""The reward replica: one reward model, which takes its batches one after another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from expo_ray.errors import ExpoError
from expo_ray.lazy import quick_imports
from expo_ray.rewards import (
    CachedRewardModel,
    RewardModel,
    RewardModelSpec,
    RewardScore,
    SelfTest,
    load_reward_model,
    run_self_test,
)
from expo_ray.rewards.anchors import AnchorPair
from expo_ray.rewards.interface import Chat, References
from expo_ray.rewards.score_cache import ScoreCache
from expo_ray.serving.own_thread import OwnThread


@dataclass(frozen=True, kw_only=True, slots=True)
class Scored:
    """The scores of a chunk, and which reward model gave them."""

    name: str
    revision: str
    scores: list[RewardScore]
    settings: str = ""
    """What else decides its scores."""
    needs_reference: bool = False
    num_cached: int = 0
    """Scores that were known already."""
    error: ExpoError | None = None
    """Why there is no reward model. A value, because an exception would lose its type."""


class Rewarder:
    """One replica.

    Args:
        spec: Which reward model.
        initial: For an implicit reward: the checkpoint before alignment.
        aligned: For an implicit reward: the aligned one.
        use_cache: Whether scores are remembered on this machine, and looked up there.
        truncate: Whether chats that are too long are cut instead of refused.
        num_threads: Of its arithmetic on a CPU, see `replica_threads`.
        load: Of the engine that computes, as `load_reward_model`.
    """

    def __init__(
        self,
        spec: RewardModelSpec,
        initial: str | None = None,
        aligned: str | None = None,
        *,
        use_cache: bool = False,
        truncate: bool = False,
        num_threads: int | None = None,
        load: Callable[..., RewardModel] = load_reward_model,
    ) -> None:
        self._is_general = spec.kind.is_general
        self._thread = OwnThread("reward-model", num_threads if spec.kind.has_dtypes else None)
        self._plain: RewardModel | None = None
        self._error: ExpoError | None = None
        self._cached: CachedRewardModel | None = None
        loading = partial(
            load,
            spec,
            initial=initial,
            aligned=aligned,
            device=_device() if spec.kind.has_dtypes else "cpu",
            truncate=truncate,
        )
        try:
            # vLLM lets nobody set the threads of this process once it has loaded.
            self._plain = self._thread.wait(loading)
        except ExpoError as error:
            self._error = error
        if use_cache and spec.kind.is_remembered and self._plain is not None:
            self._cached = CachedRewardModel(self._plain, ScoreCache())

    async def score(self, chats: Sequence[Chat], references: References | None = None) -> Scored:
        """Score chats; an empty list asks only who scores."""
        return await self._thread.run(lambda: self._score(chats, references))

    async def self_test(
        self,
        chats: Sequence[Chat],
        anchors: Sequence[AnchorPair] | None,
        references: References | None = None,
    ) -> SelfTest | ExpoError:
        """Test the model itself, past the cache; an error comes back as a value."""

        def run() -> SelfTest | ExpoError:
            if self._plain is None:
                raise AssertionError("nobody tests a model that did not load")
            try:
                return run_self_test(
                    self._plain,
                    chats,
                    anchors=anchors,
                    is_general=self._is_general,
                    references=references,
                )
            except ExpoError as error:
                return error

        return await self._thread.run(run)

    def _score(self, chats: Sequence[Chat], references: References | None) -> Scored:
        model = self._cached or self._plain
        if model is None:
            return Scored(name="", revision="", scores=[], error=self._error)
        before = self._cached.num_cached if self._cached else 0
        scores = model.score(chats, references) if chats else []
        return Scored(
            name=model.name,
            revision=model.revision,
            scores=scores,
            settings=model.settings,
            needs_reference=model.needs_reference,
            num_cached=self._cached.num_cached - before if self._cached else 0,
        )


def _device() -> str:
    with quick_imports():
        import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
