"""The tree of the commands of `expo-ray`; none of them imports anything heavy before it runs."""

from __future__ import annotations

import inspect
import sys
from typing import Annotated

import typer
from typer.exceptions import TyperException

from expo_ray import __version__
from expo_ray.cli import (
    checkpoint_commands,
    compare_commands,
    lab_commands,
    recipe_commands,
    run_commands,
    serving_commands,
)
from expo_ray.errors import ConfigError

app = typer.Typer(
    name="expo-ray",
    help=(
        "Extrapolate an aligned language model beyond its alignment training, on a Ray cluster, "
        "and prove whether that helped.\n\n"
        "theta2 = theta1 + alpha * (theta1 - theta0), with theta0 the initial (SFT) and theta1 the "
        "aligned (DPO, RLHF) model."
    ),
    epilog="Start with: expo-ray diagnose INITIAL ALIGNED, then expo-ray select --help.",
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
compare_commands.register(app)
recipe_commands.register(app)
lab_commands.register(app)


def _unwrap(tree: typer.Typer) -> None:
    """Join the lines of each paragraph of the help: a terminal breaks them by its own width."""
    for command in tree.registered_commands:
        paragraphs = (inspect.getdoc(command.callback) or "").split("\n\n")
        command.help = "\n\n".join(" ".join(text.split()) for text in paragraphs)
    for group in tree.registered_groups:
        if group.typer_instance is not None:
            _unwrap(group.typer_instance)


_unwrap(app)


def call(arguments: list[str]) -> int | None:
    """Run the command that stands in `arguments`; return its exit code, None for 0.

    Raises:
        ConfigError: There is no such command, or its flags are wrong.
        ExpoError: Whatever the command raises.
    """
    try:
        code: int | None = app(args=arguments or ["--help"], standalone_mode=False)
    except typer.Abort:  # what typer makes of an interrupt
        raise KeyboardInterrupt from None
    except TyperException as error:
        raise ConfigError(
            error.format_message() or "no command is named",
            where=_where(error),
            hint=_hint(error, arguments),
        ) from error
    return code


# What is written for one command out of the habit of another: the words, and the cure.
_HABITS = {
    ("extrapolate", "--output"): "OUTPUT is the third argument, after INITIAL and ALIGNED",
    ("serve", "extra argument"): "the model before alignment goes to --initial",
    ("loadtest", "--trajectory"): "`expo-ray serve --trajectory FILE --alpha A`, then its URL as "
    "TARGET",
    ("run", "--alpha"): "a recipe's keys are set by --set extrapolation.alphas=[0.3]",
    ("submit", "--alpha"): "a recipe's keys are set by --set extrapolation.alphas=[0.3]",
}


def _hint(error: TyperException, arguments: list[str]) -> str:
    context = getattr(error, "ctx", None)
    command = "expo-ray" if context is None else context.command_path
    flag = str(getattr(error, "option_name", ""))
    told = error.format_message()
    habits = [
        cure
        for (name, words), cure in _HABITS.items()
        if arguments[:1] == [name] and (words == flag or words in told)
    ]
    if flag[:1] == "-" and flag[1:2].isdigit():
        habits.append("put -- before a negative number")
    elif "valid number" in told and any("," in text for text in arguments):
        habits.append("a number has a point, not a comma; for several repeat the flag")
    return "; ".join([*habits, f"see `{command} --help`"])


def _where(error: TyperException) -> str | None:
    """Return the flag or argument that typer could not take, where it names one."""
    parameter = getattr(error, "param", None)
    if parameter is None:
        return getattr(error, "option_name", None)
    flags = [text for text in parameter.opts if text.startswith("-")]
    return flags[0] if flags else str(parameter.name).upper()
