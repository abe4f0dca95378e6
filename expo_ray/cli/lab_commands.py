"""`expo-ray lab`: a command for each controlled experiment of `expo_ray.lab.experiments`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from expo_ray.cli.model_options import FlagsOf, Given, add_command, from_flags
from expo_ray.cli.run_commands import PANEL
from expo_ray.cli.session import AddressOption, OutputFlags, Session, key_value_table, new_table
from expo_ray.lab.experiments.kind import Experiment, Where
from expo_ray.lab.experiments.registry import EXPERIMENTS


def register(app: typer.Typer) -> None:
    """Add the group of the experiments to the tree."""
    group = typer.Typer(
        help="Controlled experiments, in which the truth is known.",
        epilog="Example: expo-ray lab language --fraction 0.05 --output runs/language",
        no_args_is_help=True,
    )
    for experiment in EXPERIMENTS.values():
        add_command(group, _command(experiment), name=experiment.name)
    app.add_typer(group, name="lab", rich_help_panel=PANEL)


def _command(experiment: Experiment) -> Callable[..., None]:
    def command(
        output: Annotated[
            Path,
            typer.Option(metavar="DIR", help="Folder of models and results; a rerun continues."),
        ] = Path("runs") / experiment.name,
        address: AddressOption = None,
        *,
        settings: Given,
        shown: OutputFlags,
    ) -> None:
        with Session(**shown) as session:
            where = Where(output=output, address=address, progress=session.progress)
            result = experiment.run(from_flags(experiment.settings, settings), where)
            if experiment.has_page:
                from expo_ray.reports import write_report

                result = {**result, "report": str(write_report(output))}
            session.emit(result, lambda console: _render(console, result))

    command.__doc__ = experiment.help
    # What the flags are, only the record knows.
    command.__annotations__["settings"] = Annotated[Given, FlagsOf(experiment.settings)]
    return command


def _render(console: Console, result: Mapping[str, Any]) -> None:
    tables = {name: rows for name, rows in result.items() if isinstance(rows, list)}
    console.print(key_value_table({k: v for k, v in result.items() if k not in tables}))
    for name, rows in tables.items():
        headings = [heading.replace("_", " ") for heading in rows[0]] if rows else []
        table = new_table(*headings, title=name.replace("_", " "))
        for row in rows:
            table.add_row(*(_shown(value) for value in row.values()))
        console.print(table)


def _shown(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
