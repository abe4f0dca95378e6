"""Generator and reward replicas that stay while one candidate after the other is tried."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import ray

from expo_ray.cluster import ray_session
from expo_ray.progress import CombinedProgress, Progress
from expo_ray.serving import GeneratorReplicas, RewardReplicas
from expo_ray.workflow import stages


class LiveReplicas:
    """Starts replicas when they are first needed and keeps them where all fit the cluster at once.

    Staying is what makes a candidate cheap: alpha changes inside the replicas. Where not all fit,
    each kind makes room for the next.

    Args:
        run: Whose models and settings.
        stack: Closes the replicas.
        purpose: Before the names of the stages in the record of times.
    """

    def __init__(self, run: stages.Run, stack: ExitStack, *, purpose: str = "") -> None:
        self._run = run
        self._purpose = purpose
        self._stack = stack
        self._generators: GeneratorReplicas | None = None
        self._rewarders: dict[str, RewardReplicas] = {}

    @contextmanager
    def generating(self, num_responses: int) -> Iterator[tuple[GeneratorReplicas, Progress]]:
        """Give generator replicas, with a progress bar for so many responses."""
        with (
            self._stage("generation"),
            self._generator_replicas() as replicas,
            self._bar("Generating", num_responses) as progress,
        ):
            yield replicas, progress

    @contextmanager
    def scoring(self, label: str, num_responses: int) -> Iterator[tuple[RewardReplicas, Progress]]:
        """Give replicas of one reward model, with a progress bar for so many responses."""
        with (
            self._stage(f"scoring {label}"),
            self._reward_replicas(label) as replicas,
            self._bar(f"Scoring with {label}", num_responses) as progress,
        ):
            yield replicas, progress

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        run = self._run
        run.stack.enter_context(ray_session(run.address))
        start = time.monotonic()
        yield
        run.directory.add_timing(self._purpose + name, time.monotonic() - start)

    @contextmanager
    def _bar(self, description: str, total: int) -> Iterator[CombinedProgress]:
        progress = CombinedProgress(self._run.progress, description, total=total, unit="responses")
        yield progress
        progress.close()

    @contextmanager
    def _generator_replicas(self) -> Iterator[GeneratorReplicas]:
        if self._generators is None:
            made = self._run.generator_replicas()
            if not self._all_fit():
                with made:
                    yield made
                return
            self._generators = self._stack.enter_context(made)
        yield self._generators

    @contextmanager
    def _reward_replicas(self, label: str) -> Iterator[RewardReplicas]:
        if label not in self._rewarders:
            made = self._run.reward_replicas(label)
            if not self._all_fit():
                with made:
                    yield made
                return
            self._rewarders[label] = self._stack.enter_context(made)
        yield self._rewarders[label]

    def _all_fit(self) -> bool:
        recipe, resources = self._run.recipe, ray.cluster_resources()
        num_replicas = recipe.generators.num_replicas * recipe.generators.tensor_parallel_size
        num_replicas += recipe.rewarders.num_replicas * len(self._run.reward_models)
        return all(
            num_replicas <= resources[kind] for kind in ("CPU", "GPU") if resources.get(kind)
        )
