"""Commands on results: compare two sets of them, plan how many prompts a question needs."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from expo_ray.cli.model_options import add_command
from expo_ray.cli.narrow_tables import print_table
from expo_ray.cli.session import OutputFlags, Session, key_value_table, new_table
from expo_ray.errors import ConfigError

PANEL = "Results"

Metric = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="The score, where a file has several; PATH#NAME for one side alone."
    ),
]
Item = Annotated[
    str | None,
    typer.Option(metavar="COLUMN", help="Names of the items, where a table has another column."),
]
Cluster = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="Which items share a document: a column, a field of the document, a key of metadata.",
    ),
]
Confidence = Annotated[
    float, typer.Option(min=0.5, max=0.9999, help="Two-sided, of every interval.")
]


def register(app: typer.Typer) -> None:
    """Add this module's commands to the tree."""
    add_command(app, compare, panel=PANEL)
    add_command(app, plan_prompts, name="plan-prompts", panel=PANEL)


def compare(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="Results of the first model: PATH or PATH#SCORE. A rewards or responses table, "
            "samples of lm-evaluation-harness, a log of inspect in JSON, annotations of "
            "AlpacaEval, a CSV, or a folder of logs.",
        ),
    ],
    b: Annotated[
        str, typer.Argument(metavar="B", help="Results of the second, on the same items.")
    ],
    metric: Metric = None,
    item: Item = None,
    cluster: Cluster = None,
    lower_is_better: Annotated[
        bool,
        typer.Option(
            "--lower-is-better",
            help="Lower scores are ahead; else only those called wer, perplexity, loss or alike "
            "are.",
        ),
    ] = False,
    higher_is_better: Annotated[
        bool, typer.Option("--higher-is-better", help="Higher scores are, whatever the name.")
    ] = False,
    confidence: Confidence = 0.95,
    power: Annotated[
        float,
        typer.Option(min=0.5, max=0.9999, help="With which the detectable difference is seen."),
    ] = 0.8,
    output: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Page to write, .html or .md; may repeat."),
    ] = None,
    *,
    shown: OutputFlags,
) -> None:
    """Compare two sets of results on the same items, in pairs: is B better than A?

    McNemar's exact test where answers are right or wrong, a paired bootstrap where they have
    scores, over documents where items share one, with Holm's correction over tasks. Results of
    different items are refused.

    Examples: expo-ray compare samples_gsm8k_a.jsonl samples_gsm8k_b.jsonl --metric exact_match;
    expo-ray compare results.csv#aligned results.csv#candidate --output comparison.html
    """
    from expo_ray.reports.comparison_page import compare as run_compare

    with Session(**shown) as session:
        if lower_is_better and higher_is_better:
            raise ConfigError(
                "a score has one direction",
                where="--lower-is-better",
                got="--higher-is-better too",
                expected="one of the two, or neither",
            )
        given = lower_is_better or higher_is_better
        found = run_compare(
            a,
            b,
            metric=metric,
            item=item,
            cluster=cluster,
            lower_is_better=lower_is_better if given else None,
            confidence=confidence,
            power=power,
            output=output or (),
        )
        session.emit(found, lambda console: _render(console, found))


def plan_prompts(
    pilot: Annotated[
        str | None,
        typer.Argument(metavar="A", help="Results of one model on a few prompts, as for compare."),
    ] = None,
    other: Annotated[
        str | None,
        typer.Argument(metavar="B", help="Those of another model on the same prompts."),
    ] = None,
    gain: Annotated[float | None, typer.Option(help="See a true gain of so much.")] = None,
    margin: Annotated[
        float | None,
        typer.Option(help="Show that an equal model is no worse than this, as --no-worse-than."),
    ] = None,
    metric: Metric = None,
    item: Item = None,
    cluster: Cluster = None,
    accuracy: Annotated[
        float | None,
        typer.Option(help="Without results: expected share of right answers; else 0.5, the worst."),
    ] = None,
    correlation: Annotated[
        float | None,
        typer.Option(
            help="Without results of both: of their answers to the same prompts; else 0.5, as "
            "published."
        ),
    ] = None,
    power: Annotated[
        float, typer.Option(min=0.5, max=0.9999, help="Probability of the answer hoped for.")
    ] = 0.8,
    confidence: Confidence = 0.95,
    *,
    shown: OutputFlags,
) -> None:
    """How many prompts and samples show a gain, or that nothing is lost beyond a margin.

    From the results of both models on a few prompts, from one model's, or from an accuracy and a
    correlation; which one is said.

    Examples: expo-ray plan-prompts --margin 0.02 --accuracy 0.8; expo-ray plan-prompts
    run/rewards/0-rm/alpha-0.parquet run/rewards/0-rm/alpha-0.3.parquet --gain 0.1
    """
    from expo_ray.evaluation.prompt_plan import plan_prompts as plan

    with Session(**shown) as session:
        found = plan(
            pilot,
            other,
            gain=gain,
            margin=margin,
            metric=metric,
            item=item,
            cluster=cluster,
            accuracy=accuracy,
            correlation=correlation,
            power=power,
            confidence=confidence,
        )
        session.emit(found, lambda console: _render_plan(console, found))


def _render(console: Console, found: dict[str, Any]) -> None:
    from expo_ray.reports.comparison_page import (
        COLUMNS,
        comparison_rows,
        headline,
        task_sentence,
    )

    droppable = ("items", "A", "B")
    print_table(console, COLUMNS, comparison_rows(found), droppable=droppable, names_fold=True)
    console.print()
    console.print(headline(found), markup=False)
    for task in found["tasks"]:
        name = f"{task['task']}: " if task["task"] else ""
        console.print(f"{name}{task_sentence(task, found['settings'])}", markup=False)
    for warning in found["warnings"]:
        console.print(f"warning: {warning}", markup=False)


def _render_plan(console: Console, found: dict[str, Any]) -> None:
    table = new_table("task", "samples per prompt", "prompts", "answers per model")
    for size in found["sizes"]:
        table.add_row(
            size["task"] or "-",
            str(size["samples_per_prompt"]),
            f"{size['num_prompts']:,}",
            f"{size['num_answers']:,}",
        )
    console.print(table)
    console.print()
    question = found["question"]
    asked = (
        f"an equal model is shown to lose less than {question['margin']:g}"
        if question["gain"] is None
        else f"a true difference of {question['gain']:g} is seen"
    )
    facts: dict[str, object] = {
        "so many": f"{asked} with {question['power']:.0%} power at {question['confidence']:.0%} "
        "confidence"
    }
    for spread in found["spreads"]:
        name = f"spread of {spread['task']}" if spread["task"] else "spread"
        facts[name] = f"variance {spread['variance']:.3g} per prompt: {spread['source']}"
    console.print(key_value_table(facts))
    for warning in found["warnings"]:
        console.print(f"warning: {warning}", markup=False)
