"""The search for alpha on live replicas: answers and scores exactly what a strategy asks for.

Responses and rewards grow in the tables of the run directory, so a killed search continues: it is
repeated from the start, and what stands in the tables costs nothing again.
"""

from __future__ import annotations

from collections.abc import Sequence

from expo_ray.extrapolation.planning.alpha import ALIGNED_ALPHA
from expo_ray.lab import write_truth
from expo_ray.selection import SelectionSettings
from expo_ray.selection.measured_tables import measure_tables
from expo_ray.selection.recall import recall, to_recall
from expo_ray.selection.search import Measured, search_alphas
from expo_ray.serving.self_test_file import measured_spread
from expo_ray.tables.seeds import shuffled
from expo_ray.workflow import stages
from expo_ray.workflow.live_replicas import LiveReplicas
from expo_ray.workflow.live_tables import LiveTables
from expo_ray.workflow.run_dir import TRUTH


def search_candidates(run: stages.Run) -> None:
    """Try candidates on the tuning prompts as the strategy says, then confirm one.

    Only alpha 0 and the candidate that the tuning prompts speak for answer the held-out prompts,
    and the next smaller one where guards or gates stop it there, even if a race had dropped it.
    """
    tuning, heldout = (
        shuffled(
            [prompt_id for prompt_id, its in run.splits.items() if its == split],
            seed=run.recipe.seed,
            purpose="race",
        )
        for split in ("tuning", "heldout")
    )
    tables = LiveTables(run, LiveReplicas(run))
    # The self-test runs with the first scores: a race is to drop by the rule that chooses.
    tables.fill((ALIGNED_ALPHA,), tuning[:1])
    spread = measured_spread([run.directory.rewards(next(iter(run.reward_models)), ALIGNED_ALPHA)])
    settings = run.selection.above(spread)
    answers = _Answers(run, tables, settings)
    run.search = search_alphas(
        answers, tuning, alphas=run.recipe.extrapolation.alphas, settings=settings
    )
    run.directory.update_resolved({"alphas": list(run.alphas)})
    confirmed: set[float] = set()
    while True:
        found = stages.decide(run)
        dropped = to_recall(run.search, found)
        if dropped is not None:
            run.progress.message(f"alpha {dropped:g}, dropped before, is the next smaller one")
            tables.fill((ALIGNED_ALPHA, dropped), tuning)
            run.search = recall(run.search, dropped, found)
            continue
        if (tried := found["tried_alpha"]) in {None, *confirmed}:
            break
        run.progress.message(f"confirming alpha {tried:g} on {len(heldout)} held-out prompts")
        tables.fill((ALIGNED_ALPHA, tried), (*tuning, *heldout))
        confirmed.add(tried)
    if run.recipe.lab is not None:
        for alpha in run.alphas:
            truth = run.directory.rewards(TRUTH, alpha)
            write_truth(run.directory.responses(alpha), truth, task=run.recipe.lab.task)


class _Answers:
    """The callback of the search."""

    def __init__(self, run: stages.Run, tables: LiveTables, settings: SelectionSettings) -> None:
        self._run = run
        self._tables = tables
        self._settings = settings

    def __call__(self, alphas: Sequence[float], prompts: Sequence[str]) -> Measured:
        self._run.progress.message(
            f"{len(alphas) - 1} candidate(s) on {len(prompts)} tuning prompts: "
            + ", ".join(f"{alpha:g}" for alpha in alphas if alpha != 0)
        )
        self._tables.fill(alphas, prompts)
        responses, rewards = self._tables.read({alpha: alpha for alpha in alphas})
        scoring, *guards = rewards
        return measure_tables(
            responses,
            rewards[scoring],
            alphas=alphas,
            prompts=prompts,
            settings=self._settings,
            guard_rewards={label: rewards[label] for label in guards},
            signs_file=self._run.directory.signs_file,
        )
