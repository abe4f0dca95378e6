"""A race on recorded tables: it is shown those answers alone that it asks for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from expo_ray.selection import SelectionSettings, choose_alpha
from expo_ray.selection.measured_tables import measure_tables
from expo_ray.selection.search import Measured, SearchResult, search_alphas


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplayedRace:
    """The tables of all candidates, and the order in which a race asks tuning prompts."""

    responses: pa.Table
    rewards: pa.Table
    guard_rewards: Mapping[str, pa.Table]
    tuning: Sequence[str]
    settings: SelectionSettings

    def search(self, alphas: Sequence[float]) -> SearchResult:
        """Race these candidates."""

        def measure(asked: Sequence[float], prompts: Sequence[str]) -> Measured:
            return measure_tables(
                self.responses,
                self.rewards,
                alphas=asked,
                prompts=prompts,
                settings=self.settings,
                guard_rewards=self.guard_rewards,
            )

        return search_alphas(measure, self.tuning, alphas=alphas, settings=self.settings)

    def choose(
        self,
        num_answered: Mapping[float, int],
        *,
        heldout: Collection[str] = (),
        search: SearchResult | None = None,
    ) -> dict[str, Any]:
        """Return the selection on what was answered.

        Args:
            num_answered: Tuning prompts by alpha, from the first one on.
            heldout: Prompts of which all answers are shown.
            search: The race that asked for these; None for a full grid.
        """
        answered = {alpha: set(self.tuning[:n]) for alpha, n in num_answered.items()}

        def shown(table: pa.Table) -> pa.Table:
            keys = zip(table["alpha"].to_pylist(), table["prompt_id"].to_pylist(), strict=True)
            return table.filter(pa.array([i in heldout or i in answered[a] for a, i in keys]))

        return choose_alpha(
            shown(self.responses),
            shown(self.rewards),
            settings=self.settings,
            guard_rewards={name: shown(table) for name, table in self.guard_rewards.items()},
            search=search,
        )


def share_of_all(search: SearchResult, num_tried: int, num_heldout: int) -> float:
    """Return the answers of a race over those of the grid, where every candidate answers all.

    Args:
        search: The race.
        num_tried: Candidates that went to the held-out prompts, where alpha 0 answers too.
        num_heldout: How many these are.
    """
    confirmed = (1 + num_tried) * num_heldout if num_tried else 0
    raced = sum(search.num_answered.values()) + confirmed
    return raced / ((search.num_tuning + num_heldout) * len(search.num_answered))
