"""Responses and rewards of candidates on live replicas, as they are asked for, and never twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from expo_ray.extrapolation.planning.alpha import ALIGNED_ALPHA
from expo_ray.extrapolation.planning.alpha_rules import AlphaRules
from expo_ray.serving.alpha_setting import AlphaSetting
from expo_ray.tables import read_table
from expo_ray.workflow import stages
from expo_ray.workflow.live_replicas import LiveReplicas


class LiveTables:
    """Grows the tables of a run directory, so that a killed search continues.

    Args:
        run: Whose models, prompts and directory.
        replicas: Answer and score.
    """

    def __init__(self, run: stages.Run, replicas: LiveReplicas) -> None:
        self._run = run
        self._replicas = replicas

    def fill(self, alphas: Sequence[AlphaSetting], prompts: Sequence[str]) -> None:
        """Answer these prompts by these candidates, and score by every reward model.

        Args:
            alphas: Candidates, and rules for parts of the model.
            prompts: Ids; rows that stand already cost nothing.
        """
        unanswered = [alpha for alpha in alphas if self._num_missing(alpha, prompts)]
        if unanswered:
            self._answer(unanswered, set(prompts))
        for label in self._run.reward_models:
            unscored = [alpha for alpha in alphas if not self._is_scored(label, alpha)]
            if unscored:
                self._score(label, unscored)

    def read(self, places: Mapping[float, AlphaSetting]) -> tuple[pa.Table, dict[str, pa.Table]]:
        """Return what candidates answered, and their rewards by reward model.

        Args:
            places: Candidates by the alpha in whose place each stands: rules have none.
        """
        directory = self._run.directory
        responses = [_in_place(directory.responses(a), place) for place, a in places.items()]
        rewards = {
            label: pa.concat_tables(
                _in_place(directory.rewards(label, a), place) for place, a in places.items()
            )
            for label in self._run.reward_models
        }
        return pa.concat_tables(responses), rewards

    def _answer(self, alphas: Sequence[AlphaSetting], prompts: set[str]) -> None:
        run = self._run
        stages.write_missing_checkpoints(run, [a for a in alphas if not isinstance(a, AlphaRules)])
        total = sum(self._num_missing(alpha, prompts) for alpha in alphas)
        asked = [prompt for prompt in run.prompts if prompt.prompt_id in prompts]
        with self._replicas.generating(total) as (replicas, progress):
            for alpha in alphas:
                made = replicas.write_responses(
                    run.source(alpha),
                    asked,
                    run.directory.responses(alpha),
                    sampling=run.recipe.sampling,
                    splits=run.splits,
                    alpha=None if isinstance(alpha, AlphaRules) else alpha,
                    progress=progress,
                )
                run.note_generation(made)

    def _score(self, label: str, alphas: Sequence[AlphaSetting]) -> None:
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
                    references_path=directory.responses(ALIGNED_ALPHA),
                    progress=progress,
                )

    def _num_missing(self, alpha: AlphaSetting, prompts: Sequence[str] | set[str]) -> int:
        num_samples = self._run.recipe.sampling.num_samples
        path = self._run.directory.responses(alpha)
        if not path.exists():
            return len(prompts) * num_samples
        table = read_table(path).select(["prompt_id", "sample"]).to_pydict()
        answered = set(zip(table["prompt_id"], table["sample"], strict=True))
        return sum((p, i) not in answered for p in prompts for i in range(num_samples))

    def _num_scored(self, label: str, alpha: AlphaSetting) -> int:
        path = self._run.directory.rewards(label, alpha)
        return int(read_table(path).num_rows) if path.exists() else 0

    def _is_scored(self, label: str, alpha: AlphaSetting) -> bool:
        responses = read_table(self._run.directory.responses(alpha))
        return self._num_scored(label, alpha) == int(responses.num_rows)


def _in_place(path: Path, alpha: float) -> pa.Table:
    table = read_table(path)
    column = table.schema.get_field_index("alpha")
    values = pa.array([alpha] * table.num_rows, pa.float64())
    return table.set_column(column, table.schema.field(column), values)
