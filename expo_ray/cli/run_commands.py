"""Commands on whole runs: run, submit, select, report."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expo_ray.cli import select_command
from expo_ray.cli.evaluate_commands import evaluations
from expo_ray.cli.model_options import COMMON, add_command
from expo_ray.cli.options import (
    CacheFlag,
    DryRunFlag,
    OverridesOption,
    SelfTestFlag,
    TokensPerSecond,
)
from expo_ray.cli.select_command import refuse_rate_without_plan, render_plan, render_result
from expo_ray.cli.session import AddressOption, OutputFlags, Session, key_value_table

PANEL = "Runs"


def register(app: typer.Typer) -> None:
    """Add this module's commands to the tree."""
    for command in (run, submit, select_command.select, report):
        add_command(app, command, panel=PANEL)
    app.add_typer(evaluations(), name="evaluate", rich_help_panel=PANEL)


def run(
    recipe: Annotated[Path, typer.Argument(help="A recipe, see `expo-ray recipe new`.")],
    overrides: OverridesOption = None,
    dry_run: DryRunFlag = False,
    tokens_per_second: TokensPerSecond = None,
    self_test: SelfTestFlag = True,
    cache: CacheFlag = True,
    address: AddressOption = None,
    *,
    shown: OutputFlags,
) -> None:
    """Run a whole recipe: extrapolate, serve, score, choose alpha, load-test, report.

    A rerun of the same recipe continues where the last one stopped.

    Example: expo-ray run quickstart.yaml --set seed=7
    """
    from expo_ray.workflow.run import run as run_recipe

    refused = {"self_test": not self_test, "cache": not cache}
    how = [f"rewarders.{key}=false" for key, off in refused.items() if off]
    overrides = [*(overrides or ()), *how]
    with Session(**shown) as session:
        if dry_run:
            from expo_ray.workflow.plan import plan_run

            plan = plan_run(recipe, overrides, tokens_per_second=tokens_per_second)
            session.emit(plan, lambda console: render_plan(console, plan))
            return
        refuse_rate_without_plan(tokens_per_second)
        result = run_recipe(recipe, overrides=overrides, address=address, progress=session.progress)
        session.emit(result, lambda console: render_result(console, result))


def submit(
    recipe: Annotated[Path, typer.Argument(help="A recipe inside the working directory.")],
    overrides: OverridesOption = None,
    working_dir: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder to upload, less what .gitignore names.")
    ] = Path(),
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Follow the log until the job ends.")
    ] = True,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Job server, http://HEAD:8265; by default RAY_API_SERVER_ADDRESS, else "
            "RAY_ADDRESS, else this machine's.",
            rich_help_panel=COMMON,
        ),
    ] = None,
    *,
    shown: OutputFlags,
) -> None:
    """Run a whole recipe as a job of a cluster; the exit code is the job's.

    The job's log goes to stderr. Submitting the same recipe again continues the run. Where this
    command is interrupted, the job goes on: `ray job stop` ends it.

    Example: expo-ray submit quickstart.yaml --address http://head:8265
    --set output=/shared/runs/quickstart
    """
    from expo_ray.workflow.submission import submit as submit_recipe

    with Session(**shown) as session:
        result = submit_recipe(
            recipe,
            overrides=overrides or (),
            working_dir=working_dir,
            address=address,
            wait=wait,
            on_log=lambda text: session.progress.message(text.rstrip("\n")),
        )
        session.emit(result, lambda console: console.print(key_value_table(result)))


def report(
    run_directory: Annotated[
        str, typer.Argument(help="The directory of a run, or the output of a load test.")
    ],
    *,
    shown: OutputFlags,
) -> None:
    """Write report.html and figures/ of a run, a load test or a trajectory; needs no Ray, no model.

    Examples: expo-ray report runs/quickstart; expo-ray report lt
    """
    from expo_ray.reports import write_report

    with Session(**shown) as session:
        path = write_report(run_directory)
        session.emit(
            {"report": str(path)}, lambda console: console.print(str(path), soft_wrap=True)
        )
