"""Replicas that stay from one part of a run to the next, where all that it needs fit at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
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
    models = list({identity(spec): spec for spec in reward_models}.values())
    num_generators = recipe.generators.num_replicas * recipe.generators.tensor_parallel_size
    num_rewarders = recipe.rewarders.num_replicas
    num_replicas = num_generators + num_rewarders * len(models)
    resources = ray.cluster_resources()
    if any(num_replicas > resources[kind] for kind in ("CPU", "GPU") if resources.get(kind)):
        return False
    if resources.get("GPU"):
        return True
    # Without GPUs the weights of all lie in the memory of the nodes.
    pair_bytes = _bytes_in_memory(str(recipe.aligned or ""))
    needed = recipe.generators.num_replicas * pair_bytes
    for spec in models:
        if spec.kind.needs_pair:
            needed += num_rewarders * 2 * pair_bytes
        elif spec.kind.has_dtypes:
            needed += num_rewarders * _bytes_in_memory(spec.model)
    return needed <= float(resources.get("memory", 0))


def _bytes_in_memory(model: str) -> float:
    """Return what the weights of a model take in float32; without end where nobody knows."""
    files = [file for file in Path(model).glob("*.safetensors") if file.is_file()]
    return 2 * sum(file.stat().st_size for file in files) if model and files else math.inf


def identity(spec: RewardModelSpec) -> Hashable:
    """Return what tells the replicas of a reward model from those of others in a run."""
    return spec.text, spec.model
