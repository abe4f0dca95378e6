"""Replicas that stay from one part of a run to the next, where all that it needs fit at once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, TypeVar

import ray

from expo_ray.rewards import RewardModelSpec
from expo_ray.workflow.recipe import Recipe

Replicas = TypeVar("Replicas")


class KeptReplicas:
    """Replicas by what they are; a start costs from half a minute to many."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._known: dict[Hashable, Any] = {}

    def __len__(self) -> int:
        return len(self._known)

    @contextmanager
    def use(
        self,
        what: Hashable,
        make: Callable[[], AbstractContextManager[Replicas]],
        *,
        keep: bool,
    ) -> Iterator[Replicas]:
        """Give replicas: those that are kept, else new ones.

        Args:
            what: They are; the same value always means replicas of one type.
            make: Makes them, not started yet.
            keep: Whether new ones stay until `close`, and not only as long as this use.
        """
        if keep and what not in self._known:
            self._known[what] = self._stack.enter_context(make())
        if what in self._known:
            yield self._known[what]
            return
        with make() as replicas:
            yield replicas

    def close(self) -> None:
        """Take down all that are kept, to make room or because nothing needs them any more."""
        self._known.clear()
        self._stack.close()


def fit_at_once(recipe: Recipe, reward_models: Iterable[RewardModelSpec]) -> bool:
    """Return whether the cluster holds the generators and all these reward models at once.

    Args:
        recipe: Says how many replicas there are of each.
        reward_models: One that is named twice is one.
    """
    num_models = len({identity(spec) for spec in reward_models})
    num_replicas = recipe.generators.num_replicas * recipe.generators.tensor_parallel_size
    num_replicas += recipe.rewarders.num_replicas * num_models
    resources = ray.cluster_resources()
    return all(num_replicas <= resources[kind] for kind in ("CPU", "GPU") if resources.get(kind))


def identity(spec: RewardModelSpec) -> Hashable:
    """Return what tells the replicas of a reward model from those of others in a run."""
    return spec.text, spec.model
