"""Generator and reward replicas that stay while one candidate after the other is tried."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from expo_ray.progress import CombinedProgress, Progress
from expo_ray.serving import GeneratorReplicas, RewardReplicas
from expo_ray.workflow import stages
from expo_ray.workflow.kept_replicas import fit_at_once


class LiveReplicas:
    """Starts replicas when they are first needed and keeps them where all fit the cluster at once.

    Staying is what makes a candidate cheap: alpha changes inside the replicas. Where not all fit,
    each kind makes room for the next.

    Args:
        run: Whose models and settings; it keeps the replicas.
        purpose: Before the names of the stages in the record of times.
    """

    def __init__(self, run: stages.Run, *, purpose: str = "") -> None:
        self._run = run
        self._purpose = purpose

    @contextmanager
    def generating(self, num_responses: int) -> Iterator[tuple[GeneratorReplicas, Progress]]:
        """Give generator replicas, with a progress bar for so many responses."""
        with (
            self._stage("generation"),
            self._run.use_generators(keep=self._all_fit()) as replicas,
            self._bar("Generating", num_responses) as progress,
        ):
            yield replicas, progress

    @contextmanager
    def scoring(self, label: str, num_responses: int) -> Iterator[tuple[RewardReplicas, Progress]]:
        """Give replicas of one reward model, with a progress bar for so many responses."""
        with (
            self._stage(f"scoring {label}"),
            self._run.use_rewarders(label, keep=self._all_fit()) as replicas,
            self._bar(f"Scoring with {label}", num_responses) as progress,
        ):
            yield replicas, progress

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        run = self._run
        run.connect()
        start = time.monotonic()
        yield
        run.directory.add_timing(self._purpose + name, time.monotonic() - start)

    @contextmanager
    def _bar(self, description: str, total: int) -> Iterator[CombinedProgress]:
        progress = CombinedProgress(self._run.progress, description, total=total, unit="responses")
        yield progress
        progress.close()

    def _all_fit(self) -> bool:
        return fit_at_once(self._run.recipe, self._run.reward_models.values())
