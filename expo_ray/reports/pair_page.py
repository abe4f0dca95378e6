"""A pair's results on one page: HTML, Markdown, CSV, or a section of the model card."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expo_ray.checkpoints import atomic_write_text
from expo_ray.evaluation.open_llm import FALLS, RISES
from expo_ray.evaluation.pair_results import pair_results
from expo_ray.printable import markdown_code, markdown_text
from expo_ray.reports import wording
from expo_ray.reports.comparison_page import require_page
from expo_ray.reports.model_card import put_section
from expo_ray.reports.page_template import page_environment

SUFFIXES = (".html", ".md", ".csv")
COLUMNS = ("benchmark", "score", "before", "after", "change", "interval", "verdict")
METHOD = (
    "Changes are after minus before. Intervals (95%) are those of two independent results: both "
    "models answered the same items, so `expo-ray compare` on the samples can tell more."
)


def compare_pair(
    before: str | Path,
    after: str | Path,
    *,
    output: Sequence[str | Path] = (),
    card: str | Path | None = None,
) -> dict[str, Any]:
    """Put all results of an aligned model and its extrapolation on one page.

    Args:
        before: Folder of the aligned model's results: JSON of `evaluate alpaca-eval` and
            `evaluate mt-bench`, result files of lm-evaluation-harness, `summary.json` of a load
            test.
        after: Folder of the extrapolated model's.
        output: Pages to write, each `.html`, `.md` or `.csv`.
        card: Checkpoint of the extrapolated model, whose model card gets the table.

    Returns:
        `{"schema_version", "before", "after", "rows", "settings", "notes"}`: a row has
        `benchmark`, `score`, `unit`, `before`, `after`, `change`, `ci_low`, `ci_high`, `verdict`.

    Raises:
        ConfigError: A page cannot be written, or the checkpoint has no model card.
        TableError: Results are malformed, of several models or of different settings.

    Example:
        >>> found = expo_ray.compare_pair("results-of-dpo", "results-of-expo")
        >>> [(row["score"], row["verdict"]) for row in found["rows"]][0]
        ('win_rate', 'rises')
    """
    pages = [require_page(path, SUFFIXES) for path in output]
    found = pair_results(before, after)
    write = {".md": _markdown, ".csv": _csv, ".html": _html}
    for path in pages:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, write[path.suffix](found))
    if card is not None:
        put_section(card, "results", _section(found))
    return found


def pair_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of the table, see `COLUMNS`."""
    return [
        [
            row["benchmark"],
            f"{row['score'].replace('_', ' ')}, {row['unit']}",
            wording.number(row["before"], _decimals(row)),
            wording.number(row["after"], _decimals(row)),
            wording.signed(row["change"], _decimals(row)),
            wording.interval(row["ci_low"], row["ci_high"], _decimals(row)),
            row["verdict"].replace("-", " ") if row["ci_low"] is not None else "",
        ]
        for row in found["rows"]
    ]


def pair_headline(found: Mapping[str, Any]) -> str:
    """Return what the page says, in one line."""
    told = [row for row in found["rows"] if row["ci_low"] is not None]
    counts = [sum(row["verdict"] == word for row in told) for word in (RISES, FALLS)]
    names = [found[side]["model"] or side for side in ("before", "after")]
    return (
        f"{names[1]} beside {names[0]}: of {len(told)} scores with an interval {counts[0]} rise, "
        f"{counts[1]} fall"
    )


def _decimals(row: Mapping[str, Any]) -> int:
    return 2 if row["unit"] == "of 10" else 1 if row["unit"] != "characters" else 0


def _table(found: Mapping[str, Any]) -> list[str]:
    lines = [f"| {' | '.join(COLUMNS)} |", f"|---|---|{'---:|' * 4}---|"]
    lines += [f"| {' | '.join(map(markdown_text, row))} |" for row in pair_rows(found)]
    return [*lines, "", METHOD, ""]


def _about(found: Mapping[str, Any]) -> list[str]:
    lines = [
        f"- {side}: {markdown_text(str(found[side]['model']))}, weights "
        f"{markdown_code(str(found[side]['weights_digest'] or 'unknown'))}"
        for side in ("before", "after")
    ]
    for benchmark, settings in found["settings"].items():
        words = (f"{k.replace('_', ' ')} {markdown_code(str(v))}" for k, v in settings.items())
        if settings:
            lines.append(f"- {markdown_text(benchmark)}: {', '.join(words)}")
    return [*lines, ""]


def _section(found: Mapping[str, Any]) -> str:
    return "\n".join(["## Results", "", *_table(found), *_about(found)]).strip()


def _markdown(found: Mapping[str, Any]) -> str:
    notes = [f"> {markdown_text(note)}\n" for note in found["notes"]]
    head = [f"# {markdown_text(pair_headline(found))}", ""]
    return "\n".join([*head, *_table(found), *_about(found), *notes])


def _csv(found: Mapping[str, Any]) -> str:
    text = io.StringIO()
    sides = {f"{s}_weights_digest": found[s]["weights_digest"] for s in ("before", "after")}
    writer = csv.DictWriter(text, [*found["rows"][0], *sides], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**row, **sides} for row in found["rows"])
    return text.getvalue()


def _html(found: Mapping[str, Any]) -> str:
    page = {
        "headline": pair_headline(found),
        "method": METHOD.replace("`", ""),
        "found": found,
        "columns": COLUMNS,
        "rows": [
            {**row, "cells": cells}
            for row, cells in zip(found["rows"], pair_rows(found), strict=True)
        ],
    }
    return page_environment().get_template("pair.html.j2").render(page)
