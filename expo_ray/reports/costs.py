"""What the choice cost: answers, tokens and time, and what every candidate on every prompt had."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from expo_ray.reports.run_files import RunFiles


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateCost:
    """What one candidate answered."""

    alpha: float
    num_tuning: int
    num_heldout: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Costs:
    """What all of them took."""

    candidates: tuple[CandidateCost, ...]
    num_full: int
    """Answers that every candidate tried would have given to every prompt."""
    seconds: float | None
    """Of generation and scoring; None where no time was recorded."""

    @property
    def num_responses(self) -> int:
        """Answers that were generated."""
        return sum(c.num_tuning + c.num_heldout for c in self.candidates)

    @property
    def prompt_tokens(self) -> int:
        """Tokens read."""
        return sum(c.prompt_tokens for c in self.candidates)

    @property
    def completion_tokens(self) -> int:
        """Tokens generated."""
        return sum(c.completion_tokens for c in self.candidates)


def count_costs(run: RunFiles) -> Costs | None:
    """Return the costs of a run; None where its responses are gone."""
    if not run.responses:
        return None
    asked = pa.concat_tables(t.select(["prompt_id", "sample"]) for t in run.responses.values())
    num_asked = asked.group_by(asked.column_names).aggregate([]).num_rows
    times = [s for name, s in run.timings.items() if name.startswith(("generation", "scoring"))]
    return Costs(
        candidates=tuple(_count(alpha, run.responses[alpha]) for alpha in sorted(run.responses)),
        num_full=num_asked * len(run.responses),
        seconds=sum(times) if times else None,
    )


def _count(alpha: float, responses: pa.Table) -> CandidateCost:
    def total(values: pa.ChunkedArray) -> int:
        return int(pc.sum(values).as_py() or 0)

    heldout = total(pc.equal(responses["split"], "heldout"))
    return CandidateCost(
        alpha=alpha,
        num_tuning=responses.num_rows - heldout,
        num_heldout=heldout,
        prompt_tokens=total(responses["prompt_tokens"]),
        completion_tokens=total(responses["completion_tokens"]),
    )


def search_sentence(selection: Mapping[str, Any]) -> str | None:
    """Say what the search did, None where every candidate answered everything."""
    search = selection.get("search")
    if not search:
        return None
    looks = search["rounds"]
    num_rounds = looks[-1]["round"] if looks else 0
    num_dropped = sum(len(look["dropped"]) for look in looks)
    num_tried = len(search["prompts_answered"]) - 1
    share = search["tuning_answers"] / max(search["tuning_answers_full"], 1)
    sentence = (
        f"Strategy {search['strategy']}: {num_tried} candidate{'s' * (num_tried != 1)} in "
        f"{num_rounds} round{'s' * (num_rounds != 1)}"
    )
    if "racing" in search["strategy"]:
        sentence += (
            f", {num_dropped} of them dropped on the way; {share:.0%} of the answers to tuning "
            "prompts that all of them would have given to all prompts"
        )
    return f"{sentence}."
