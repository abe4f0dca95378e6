"""The callback of a search, answered from tables: recorded ones, or those of a run in progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from expo_ray.rewards.sample_statistics import ranked_by
from expo_ray.selection.guards import check_guards
from expo_ray.selection.race import LOOKS
from expo_ray.selection.samples import join_tables
from expo_ray.selection.search import Measured
from expo_ray.selection.settings import SelectionSettings


def measure_tables(
    responses: pa.Table,
    rewards: pa.Table,
    *,
    alphas: Sequence[float],
    prompts: Sequence[str],
    settings: SelectionSettings,
    guard_rewards: Mapping[str, pa.Table] | None = None,
    signs_file: Path | None = None,
) -> Measured:
    """Return what tables hold of some candidates on some tuning prompts.

    Args:
        responses: Responses of at least these candidates on at least these prompts.
        rewards: Their rewards under the scoring reward model.
        alphas: Candidates, alpha 0 among them.
        prompts: Ids of tuning prompts.
        settings: Thresholds of the guards.
        guard_rewards: Rewards under further reward models, by name.
        signs_file: Where the signs of the texts are kept from one look to the next.

    Raises:
        TableError: The tables are malformed, or lack alpha 0.
    """

    def part(table: pa.Table) -> pa.Table:
        wanted = pc.and_(
            pc.is_in(table["alpha"], value_set=pa.array(list(alphas), pa.float64())),
            pc.is_in(table["prompt_id"], value_set=pa.array(list(prompts), pa.string())),
        )
        return table.filter(wanted)

    judged = {name: part(table) for name, table in (guard_rewards or {}).items()}
    asked = part(responses)
    scored = ranked_by(settings.sample_statistic, part(rewards), asked)
    samples = join_tables(asked, scored, judged, signs_file=signs_file)["tuning"]
    place = {prompt: i for i, prompt in enumerate(sorted(prompts))}
    order = np.array([place[prompt] for prompt in prompts])
    guards = {
        alpha: check_guards(samples, alpha, split="tuning", settings=settings)
        for alpha in samples.alphas
        if alpha != 0
    }
    # Every look of a race is a chance to be wrong about a guard: they share the error.
    error = (1 - settings.confidence) / (len(LOOKS) + 1)
    return Measured(
        rewards={
            alpha: samples.prompt_means(samples.rewards[samples.row(alpha)])[order]
            for alpha in samples.alphas
        },
        stopped={a: tuple(g.name for g in its if g.fired) for a, its in guards.items()},
        suspected={a: tuple(g.name for g in its if g.is_beyond) for a, its in guards.items()},
        certain={a: tuple(g.name for g in its if g.is_certain(error)) for a, its in guards.items()},
    )
