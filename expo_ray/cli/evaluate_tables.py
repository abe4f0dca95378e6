"""The tables that `expo-ray evaluate` prints, one per benchmark."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from expo_ray.cli.session import new_table


def render_accuracies(console: Console, result: dict[str, Any]) -> None:
    """Print how often a reward model was right, by subset, section and in all."""
    table = new_table("accuracy (95% interval)", "share", "low", "high", "pairs", "equal", "errors")
    rows = [*result["subsets"], *result["sections"], result["overall"]]
    for row in rows if len(rows) > 2 else rows[-1:]:
        shares = (row["accuracy"], row["ci_low"], row["ci_high"])
        counts = (row["num_pairs"], row["num_equal"], row["num_errors"])
        table.add_row(
            row["name"],
            *("-" if share is None else f"{share:.1%}" for share in shares),
            *(f"{count:,}" for count in counts),
        )
    console.print(table)
    for section in result["sections"]:
        if section["num_subsets_missing"]:
            console.print(
                f"{section['name']}: {section['num_subsets_missing']} of its subsets are missing",
                markup=False,
            )


def render_ratings(console: Console, result: dict[str, Any]) -> None:
    """Print MT-Bench's ratings, by category, by turn and in all."""
    table = new_table("rating (95% interval)", "mean", "low", "high", "questions")
    rows = {"first turn": result["first_turn"], "second turn": result["second_turn"]}
    for name, row in {**result["categories"], **rows, "average": result["average"]}.items():
        shares = (row["mean"], row["ci_low"], row["ci_high"])
        numbers = ("-" if share is None else f"{share:.2f}" for share in shares)
        table.add_row(name, *numbers, str(row["num_questions"]))
    console.print(table)
    if result["num_unrated"]:
        console.print(f"without a rating, and left out: {result['num_unrated']}", markup=False)


def render_changes(console: Console, result: dict[str, Any]) -> None:
    """Print what a model's extrapolation changed, task by task."""
    table = new_table("task", "shots", "before", "after", "change (95%)", "verdict")
    for row in (*result["tasks"], *([result["mean"]] if result["mean"] else ())):
        change = f"{100 * row['change']:+.1f}"
        if row["ci_low"] is not None:
            change += f" [{100 * row['ci_low']:+.1f}, {100 * row['ci_high']:+.1f}]"
        table.add_row(
            row["task"],
            "-" if row["num_shots"] is None else str(row["num_shots"]),
            *(f"{100 * row[side]:.1f}" for side in ("before", "after")),
            change,
            row["verdict"],
        )
    console.print(table)
    for note in result["notes"]:
        console.print(note, markup=False)


def render_pair(console: Console, result: dict[str, Any]) -> None:
    """Print every score of a pair."""
    from expo_ray.reports.pair_page import COLUMNS, pair_headline, pair_rows

    table = new_table(*COLUMNS)
    for row in pair_rows(result):
        table.add_row(*row)
    console.print(table)
    console.print(pair_headline(result), markup=False)
    for note in result["notes"]:
        console.print(note, markup=False)


def render_scores(console: Console, result: dict[str, Any]) -> None:
    """Print the scores of lm-evaluation-harness's tasks."""
    table = new_table("task", "score", "shots", "value", "standard error")
    for task in result["tasks"]:
        for name, score in task["scores"].items():
            error = score["standard_error"]
            table.add_row(
                task["name"],
                name,
                "-" if task["num_shots"] is None else str(task["num_shots"]),
                f"{score['value']:.4f}",
                "-" if error is None else f"{error:.4f}",
            )
    console.print(table)


def render_self_tests(console: Console, result: dict[str, Any]) -> None:
    """Print how far batching moves a reward model's scores, by dtype."""
    headings = ("dtype", "spread in batches", "spread with padding", "anchors right")
    table = new_table(*headings, title=f"Self-test of {result['reward_model']}")
    for row in result["tests"]:
        table.add_row(
            row["dtype"],
            f"{row['batch_spread']:.2g}",
            f"{row['padding_spread']:.2g}",
            f"{row['num_anchors_right']} of {row['num_anchors']}",
        )
    console.print(table)
    for warning in sorted({text for row in result["tests"] for text in row["warnings"]}):
        console.print(f"warning: {warning}", markup=False)
