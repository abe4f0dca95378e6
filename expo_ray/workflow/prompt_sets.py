"""Further sets of prompts of a run, each in a folder of its own beside the main ones.

    prompt_sets/NAME/responses, prompt_sets/NAME/rewards

All of their prompts are held out. Only the aligned model answers them, and a candidate whose gain
the main held-out prompts confirm and whom nothing stops there: what a gate costs is two models,
however many were tried.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from expo_ray.cluster import LOCAL, resolve_address
from expo_ray.extrapolation.planning.alpha import ALIGNED_ALPHA
from expo_ray.rewards.checks.preflight import require_checkable
from expo_ray.selection.gates import MAIN, Scores
from expo_ray.selection.unreadable_answers import UNREADABLE
from expo_ray.tables import read_prompts, read_table
from expo_ray.tables.prompt_files import pin_prompts
from expo_ray.workflow import stages
from expo_ray.workflow.gate_names import gate_margins, plan_gates, reported_models
from expo_ray.workflow.live_replicas import LiveReplicas
from expo_ray.workflow.live_tables import LiveTables
from expo_ray.workflow.pinning import pin_reward_models


def asks_services(run: stages.Run, before: Mapping[str, Any]) -> bool:
    """Say whether checks ask their services as a run begins.

    What nodes elsewhere reach may not be reached from here; a finished run asks for nothing more.
    """
    is_here = resolve_address(run.address) == LOCAL
    return is_here and run.recipe.rewarders.self_test and not before


def find_sets(run: stages.Run, before: Mapping[str, Any]) -> None:
    """Find the further sets of a run, and what its gates mean.

    Args:
        run: With its pair and reward models; takes the sets.
        before: What the run resolved to when it began; empty where it is new.

    Raises:
        RequestError: Prompts or reward models are missing or malformed, or a gate names nothing.
    """
    known = before.get("prompt_sets", {})
    asks = asks_services(run, before)
    for name, settings in run.recipe.prompts.sets.items():
        was = known.get(name, {})
        path = was["prompts"] if was.get("prompts_address") == settings.path else settings.path
        path = pin_prompts(path)
        inner = replace(
            run,
            directory=run.directory.prompt_set(name),
            prompts=read_prompts(path, **settings.reading(run.recipe.seed)),
            prompts_path=path,
            reward_models=pin_reward_models(
                settings.reward_models,
                run.initial,
                run.aligned,
                engine=run.recipe.rewarders.engine,
                addresses=was.get("reward_addresses"),
            ),
            is_held_out=True,
            sets={},
        )
        for spec in inner.reward_models.values():
            require_checkable(spec, inner.prompts, where=path, asks_services=asks)
        run.sets[name] = inner
    texts = {label: spec.text for label, spec in run.reward_models.items()}
    run.margins = gate_margins(run.recipe, texts)
    run.report_only = reported_models(run.recipe, texts)
    run.measure_sets = _Measure(run) if run.sets else None


def describe_sets(run: stages.Run) -> dict[str, Any]:
    """Return what the sets resolved to, for the record."""
    return {
        name: {
            "role": run.recipe.prompts.sets[name].role,
            "prompts": inner.prompts_path,
            "prompts_address": run.recipe.prompts.sets[name].path,
            "num_prompts": len(inner.prompts),
            "reward_models": {label: spec.text for label, spec in inner.reward_models.items()},
            "reward_addresses": {spec.text: spec.model for spec in inner.reward_models.values()},
        }
        for name, inner in run.sets.items()
    }


def announce_gates(run: stages.Run) -> None:
    """Say how many prompts each gate has and would need, before anything is generated."""
    num_prompts = {name: len(inner.prompts) for name, inner in run.sets.items()}
    num_prompts[MAIN] = sum(split == "heldout" for split in run.splits.values())
    texts = {label: spec.text for label, spec in run.reward_models.items()}
    for gate in plan_gates(run.recipe, texts, num_prompts):
        run.progress.message(gate.describe())


class _Measure:
    """Lets a candidate answer every set, where it has not yet, and reads what it reached."""

    def __init__(self, run: stages.Run) -> None:
        self._run = run
        self._known: dict[float, Sequence[Scores]] = {}

    def __call__(self, alpha: float) -> Sequence[Scores]:
        if alpha not in self._known:
            self._known[alpha] = self._measure(alpha)
        return self._known[alpha]

    def _measure(self, alpha: float) -> Sequence[Scores]:
        found = []
        for name, inner in self._run.sets.items():
            ids = sorted(prompt.prompt_id for prompt in inner.prompts)
            self._run.progress.message(f"{name}: alpha {alpha:g} on {len(ids)} prompts")
            self._make_room()
            LiveTables(inner, LiveReplicas(inner, purpose=f"{name} ")).fill(
                (ALIGNED_ALPHA, alpha), ids
            )
            self._make_room()
            for number, label in enumerate(inner.reward_models):
                found.append(
                    Scores(
                        # The first decides; what the others say is told beside it.
                        name=name if number == 0 else f"{name} {label}",
                        prompts=name,
                        reward_model=label,
                        aligned=_means(inner, label, ALIGNED_ALPHA, ids),
                        candidate=_means(inner, label, alpha, ids),
                        unreadable=(
                            _num_unreadable(inner, label, ALIGNED_ALPHA),
                            _num_unreadable(inner, label, alpha),
                        ),
                    )
                )
        return found

    def _make_room(self) -> None:
        """Take down what the main prompts or another set left, unless all fit at once."""
        if self._run.kept and not self._run.all_fit_with_sets:
            self._run.kept.close()


def _num_unreadable(run: stages.Run, label: str, alpha: float) -> int:
    table = read_table(run.directory.rewards(label, alpha), columns=[UNREADABLE])
    return sum(column.length() - column.null_count for column in table.columns)


def _means(
    run: stages.Run, label: str, alpha: float, ids: Sequence[str]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Return the mean reward of each prompt; not-a-number where a sample has none.

    Samples do not fail at random, so the mean of the others would flatter.
    """
    table = read_table(run.directory.rewards(label, alpha)).select(["prompt_id", "reward"])
    rewards = pc.fill_null(table["reward"], float("nan"))
    table = table.set_column(1, "reward", rewards)
    means: pa.Table = table.group_by("prompt_id").aggregate([("reward", "mean")])
    of = dict(zip(means["prompt_id"].to_pylist(), means["reward_mean"].to_pylist(), strict=True))
    return np.array([of.get(prompt, np.nan) for prompt in ids], np.float64)
