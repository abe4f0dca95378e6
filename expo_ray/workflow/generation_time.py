"""How long generation may take, told before it starts: without a model, from a rate."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from expo_ray.extrapolation.planning.alpha import ALIGNED_ALPHA
from expo_ray.tables import read_table
from expo_ray.workflow.recipe import Recipe
from expo_ray.workflow.run_dir import RunDir, read_json

_ASSUMED_PER_REPLICA = 100.0
"""Tokens per second. A round number to reckon from: engines and models lie factors of 100 apart."""


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerationRate:
    """Tokens per second of all replicas together, and how they are known."""

    tokens_per_second: float
    source: Literal["given", "measured", "assumed"]

    def facts(self, num_tokens: int) -> dict[str, Any]:
        """Return what the plan says of so many tokens, which are the most there can be."""
        return {
            "max_tokens_out": num_tokens,
            "tokens_per_second": round(self.tokens_per_second, 1),
            "rate_source": self.source,
            "max_seconds": round(num_tokens / self.tokens_per_second),
        }

    def describe(self, num_tokens: int) -> str:
        """Return the same in words."""
        longest = timedelta(seconds=round(num_tokens / self.tokens_per_second))
        how = {
            "given": "as given",
            "measured": "measured by the work in this output so far",
            "assumed": "assumed, 100 a replica; --tokens-per-second says yours",
        }[self.source]
        return f"at most {longest} at {self.tokens_per_second:,.0f} tokens/s ({how})"


def generation_rate(recipe: Recipe, given: float | None) -> GenerationRate:
    """Return the rate to reckon with.

    Args:
        recipe: Whose replicas, and in whose output earlier work may lie.
        given: Tokens per second of one replica, as the user knows them.
    """
    num_replicas = recipe.generators.num_replicas
    if given is not None:
        return GenerationRate(tokens_per_second=given * num_replicas, source="given")
    measured = _measured(RunDir(recipe.output))
    if measured is not None:
        return GenerationRate(tokens_per_second=measured, source="measured")
    return GenerationRate(tokens_per_second=_ASSUMED_PER_REPLICA * num_replicas, source="assumed")


def _measured(directory: RunDir) -> float | None:
    """Return what generation in this directory has reached, start of the replicas included."""
    seconds = read_json(directory.timings_file).get("generation")
    tables = sorted(directory.responses(ALIGNED_ALPHA).parent.glob("alpha-*.parquet"))
    num_tokens = sum(sum(read_table(table)["completion_tokens"].to_pylist()) for table in tables)
    return num_tokens / seconds if seconds and num_tokens else None
