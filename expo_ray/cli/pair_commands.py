"""`expo-ray evaluate open-llm` and `pair`: what was measured of a pair, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expo_ray.cli.evaluate_tables import render_changes, render_pair
from expo_ray.cli.session import OutputFlags, Session


def open_llm(
    before: Annotated[Path, typer.Argument(help="Results of the aligned model: file or folder.")],
    after: Annotated[Path, typer.Argument(help="Results of the extrapolated model.")],
    *,
    shown: OutputFlags,
) -> None:
    """What extrapolating changes on the Open LLM Leaderboard and any other task, task by task.

    Reads the result files of lm-evaluation-harness, of before version 0.4 and since. The six tasks
    of each leaderboard are named, those of version 1 averaged. Both models must have been measured
    in one way: examples in the prompt, questions, score, version.

    Example: expo-ray evaluate open-llm results/dpo results/expo
    """
    from expo_ray.evaluation import open_llm_changes

    with Session(**shown) as session:
        result = open_llm_changes(before, after)
        session.emit(result, lambda console: render_changes(console, result))


def pair(
    before: Annotated[Path, typer.Argument(help="Folder of the aligned model's results.")],
    after: Annotated[Path, typer.Argument(help="Folder of the extrapolated model's.")],
    output: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Page to write, .html, .md or .csv; may repeat."),
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(metavar="CHECKPOINT", help="Put the table into this model card too."),
    ] = None,
    *,
    shown: OutputFlags,
) -> None:
    """All that was measured of a pair on one page: every benchmark, length and throughput.

    A folder holds what the commands wrote for one model: the JSON of `evaluate alpaca-eval` and
    `mt-bench`, results of lm-evaluation-harness, summary.json of load tests. Results of different
    judges, sampling, chat templates or weights are refused.

    Example: expo-ray evaluate pair results/dpo results/expo --output pair.html
    """
    from expo_ray.reports.pair_page import compare_pair

    with Session(**shown) as session:
        result = compare_pair(before, after, output=output or (), card=card)
        session.emit(result, lambda console: render_pair(console, result))
