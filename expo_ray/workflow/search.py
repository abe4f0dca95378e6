"""The search for alpha on live replicas: answers and scores exactly what a strategy asks for.

Responses and rewards grow in the tables of the run directory, so a killed search continues: it is
repeated from the start, and what stands in the tables costs nothing again.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

import pyarrow as pa

from expo_ray.lab import write_truth
from expo_ray.selection.measured_tables import measure_tables
from expo_ray.selection.search import Measured, search_alphas
from expo_ray.tables import read_table
from expo_ray.tables.seeds import shuffled
from expo_ray.workflow import stages
from expo_ray.workflow.live_replicas import LiveReplicas
from expo_ray.workflow.run_dir import TRUTH


def search_candidates(run: stages.Run) -> None:
    """Try candidates on the tuning prompts as the strategy says, then confirm one.

    Only alpha 0 and the candidate that the tuning prompts speak for answer the held-out prompts.
    """
    tuning, heldout = (
        shuffled(
            [prompt_id for prompt_id, its in run.splits.items() if its == split],
            seed=run.recipe.seed,
            purpose="race",
        )
        for split in ("tuning", "heldout")
    )
    settings = run.recipe.selection
    with ExitStack() as stack:
        answers = _Answers(run, LiveReplicas(run, stack))
        run.search = search_alphas(
            answers, tuning, alphas=run.recipe.extrapolation.alphas, settings=settings
        )
        run.directory.update_resolved({"alphas": list(run.alphas)})
        tried = stages.decide(run)["tried_alpha"]
        if tried is not None:
            run.progress.message(f"confirming alpha {tried:g} on {len(heldout)} held-out prompts")
            answers.measure((0.0, tried), (*tuning, *heldout))
    if run.recipe.lab is not None:
        for alpha in run.alphas:
            write_truth(run.directory.responses(alpha), run.directory.rewards(TRUTH, alpha))


class _Answers:
    """The callback of the search."""

    def __init__(self, run: stages.Run, replicas: LiveReplicas) -> None:
        self._run = run
        self._replicas = replicas

    def __call__(self, alphas: Sequence[float], prompts: Sequence[str]) -> Measured:
        self._run.progress.message(
            f"{len(alphas) - 1} candidate(s) on {len(prompts)} tuning prompts: "
            + ", ".join(f"{alpha:g}" for alpha in alphas if alpha != 0)
        )
        self.measure(alphas, prompts)
        rewards = {
            label: pa.concat_tables(
                read_table(self._run.directory.rewards(label, alpha)) for alpha in alphas
            )
            for label in self._run.reward_models
        }
        scoring, *guards = rewards
        return measure_tables(
            pa.concat_tables(read_table(self._run.directory.responses(a)) for a in alphas),
            rewards[scoring],
            alphas=alphas,
            prompts=prompts,
            settings=self._run.recipe.selection,
            guard_rewards={label: rewards[label] for label in guards},
        )

    def measure(self, alphas: Sequence[float], prompts: Sequence[str]) -> None:
        """Fill the tables of these candidates for these prompts."""
        unanswered = [alpha for alpha in alphas if self._num_missing(alpha, prompts)]
        if unanswered:
            self._answer(unanswered, set(prompts))
        for label in self._run.reward_models:
            unscored = [alpha for alpha in alphas if not self._is_scored(label, alpha)]
            if unscored:
                self._score(label, unscored)

    def _answer(self, alphas: Sequence[float], prompts: set[str]) -> None:
        run = self._run
        stages.write_missing_checkpoints(run, alphas)
        total = sum(self._num_missing(alpha, prompts) for alpha in alphas)
        asked = [prompt for prompt in run.prompts if prompt.prompt_id in prompts]
        with self._replicas.generating(total) as (replicas, progress):
            for alpha in alphas:
                replicas.write_responses(
                    run.source(alpha),
                    asked,
                    run.directory.responses(alpha),
                    sampling=run.recipe.sampling,
                    splits=run.splits,
                    alpha=alpha,
                    progress=progress,
                )

    def _score(self, label: str, alphas: Sequence[float]) -> None:
        directory = self._run.directory
        total = sum(
            read_table(directory.responses(alpha)).num_rows - self._num_scored(label, alpha)
            for alpha in alphas
        )
        with self._replicas.scoring(label, total) as (replicas, progress):
            for alpha in alphas:
                replicas.write_rewards(
                    directory.responses(alpha),
                    directory.rewards(label, alpha),
                    references_path=directory.responses(0.0),
                    progress=progress,
                )

    def _num_missing(self, alpha: float, prompts: Sequence[str] | set[str]) -> int:
        num_samples = self._run.recipe.sampling.num_samples
        path = self._run.directory.responses(alpha)
        if not path.exists():
            return len(prompts) * num_samples
        table = read_table(path).select(["prompt_id", "sample"]).to_pydict()
        answered = set(zip(table["prompt_id"], table["sample"], strict=True))
        return sum((p, i) not in answered for p in prompts for i in range(num_samples))

    def _num_scored(self, label: str, alpha: float) -> int:
        path = self._run.directory.rewards(label, alpha)
        return int(read_table(path).num_rows) if path.exists() else 0

    def _is_scored(self, label: str, alpha: float) -> bool:
        responses = read_table(self._run.directory.responses(alpha))
        return self._num_scored(label, alpha) == int(responses.num_rows)
