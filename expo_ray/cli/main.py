"""Entry point of `expo-ray`: builds the command tree and turns errors into exit codes.

Nothing heavy is imported before a command runs: `expo-ray --help` answers at once.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from expo_ray import __version__
from expo_ray.cli import checkpoint_commands, run_commands, serving_commands
from expo_ray.cli.session import print_error
from expo_ray.errors import ConfigError, ExpoError

_STOPPED = {130: "interrupted", 143: "stopped by SIGTERM"}

app = typer.Typer(
    name="expo-ray",
    help=(
        "Extrapolate an aligned language model beyond its alignment training, on a Ray cluster, "
        "and prove whether that helped.\n\n"
        "theta2 = theta1 + alpha * (theta1 - theta0), with theta0 the initial (SFT) and theta1 the "
        "aligned (DPO, RLHF) model."
    ),
    epilog="Start with: expo-ray diagnose INITIAL ALIGNED, then expo-ray run RECIPE.",
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"expo-ray {__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            is_eager=True,
            callback=_print_version,
            help="Print the version and stop.",
        ),
    ] = False,
) -> None:
    """Options that stand before any command."""


checkpoint_commands.register(app)
serving_commands.register(app)
run_commands.register(app)


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit with the code of the contract.

    Exit codes: 0 done; 1 the work failed; 2 the request was wrong; 130 and 143 on signals.
    """
    arguments = sys.argv[1:] if argv is None else argv
    json_output = "--json" in arguments
    # Nothing here needs the usage reports of Ray or the Hub's telemetry.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        code = app(args=arguments or ["--help"], standalone_mode=False)
    except TyperException as error:
        wrong = ConfigError(
            error.format_message(), hint="see `expo-ray --help` and `expo-ray COMMAND --help`"
        )
        print_error(wrong, json_output=json_output)
        sys.exit(2)
    except ExpoError as error:
        print_error(error, json_output=json_output)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except SystemExit as stop:  # how a session leaves at SIGTERM
        code = stop.code
    # typer itself makes 130 of an interrupt inside a command.
    if code in _STOPPED:
        sys.stderr.write(f"{_STOPPED[code]}; run the same command again to continue\n")
    sys.exit(code or 0)
