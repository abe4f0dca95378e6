"""What several samples of a prompt say of each candidate, under every check."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from expo_ray.rewards.sample_statistics import check_of, named, read_samples, statistics_of
from expo_ray.selection.candidates import estimate_mean
from expo_ray.selection.samples import reward_model
from expo_ray.selection.settings import SelectionSettings
from expo_ray.selection.table_keys import canonical_alpha


def samples_by_alpha(
    rewards: Mapping[str, pa.Table], responses: pa.Table, settings: SelectionSettings
) -> dict[float, list[dict[str, Any]]]:
    """Return avg@k, pass@k and majority@k of each candidate on tuning prompts.

    Args:
        rewards: By folder name of the reward model, "" for the scoring one. Those that are no
            checks, or have one sample a prompt, are left out.
        responses: What was scored.
        settings: Confidence and seed of the intervals.
    """
    found: dict[float, list[dict[str, Any]]] = {}
    checks = {name: t for name, t in rewards.items() if check_of(reward_model(t)) is not None}
    if not checks:
        return found  # before half of all texts are copied
    of_tuning = responses.filter(pc.equal(responses["split"], "tuning"))
    for name, table in checks.items():
        tuning = table.filter(pc.is_in(table["prompt_id"], pc.unique(of_tuning["prompt_id"])))
        for alpha in pc.unique(tuning["alpha"].drop_null()).to_pylist():
            part = tuning.filter(pc.equal(tuning["alpha"], alpha))
            answers = of_tuning.filter(pc.equal(of_tuning["alpha"], alpha))
            rows = [
                {"guard": name or None, "reward_model": reward_model(table), **row}
                for row in _statistics(part, answers, settings)
            ]
            found.setdefault(canonical_alpha(alpha), []).extend(rows)
    return found


def _statistics(
    rewards: pa.Table, responses: pa.Table, settings: SelectionSettings
) -> list[dict[str, Any]]:
    samples = read_samples(rewards, responses)
    rows = []
    for statistic in statistics_of(samples):
        values = samples.values(statistic)
        estimate = estimate_mean(values[np.isfinite(values)], settings)
        low, high = estimate.interval(settings.confidence)
        rows.append(
            {
                "statistic": named(statistic, samples.most_samples),
                "mean": estimate.mean,
                "ci_low": low,
                "ci_high": high,
                "num_prompts": estimate.num_values,
            }
        )
    return rows
