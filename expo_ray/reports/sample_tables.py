"""What is told of the candidates beside the choice: several answers, further reward models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class SampleTable:
    """The statistics of one check."""

    reward_model: str
    statistics: list[str] = field(default_factory=list)
    """As columns, in the order in which they were told."""
    rows: list[tuple[float, list[Mapping[str, Any] | None]]] = field(default_factory=list)
    """Alpha, and what each column says of it; None where it says nothing."""


def sample_tables(selection: Mapping[str, Any]) -> list[SampleTable]:
    """Return a table for each check that saw several answers to a prompt."""
    tables: dict[str, SampleTable] = {}
    candidates = sorted(selection["candidates"], key=lambda one: float(one["alpha"]))
    for candidate in candidates:
        for row in candidate.get("samples") or ():
            table = tables.setdefault(row["reward_model"], SampleTable(row["reward_model"]))
            if row["statistic"] not in table.statistics:
                table.statistics.append(row["statistic"])
    for name, table in tables.items():
        for candidate in candidates:
            told = {
                row["statistic"]: row
                for row in candidate.get("samples") or ()
                if row["reward_model"] == name
            }
            cells = [told.get(statistic) for statistic in table.statistics]
            table.rows.append((float(candidate["alpha"]), cells))
    return list(tables.values())


def reported_rows(selection: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the gains under reward models that are only reported, in order of model and alpha."""
    rows = [
        {"alpha": float(candidate["alpha"]), **row}
        for candidate in selection["candidates"]
        for row in candidate.get("reported") or ()
    ]
    return sorted(rows, key=lambda row: (row["reward_model"], row["alpha"]))
