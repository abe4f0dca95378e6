"""Commands on recipes: new, check."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from expo_ray.cli.model_options import add_command
from expo_ray.cli.options import OverridesOption
from expo_ray.cli.run_commands import PANEL
from expo_ray.cli.select_command import render_plan
from expo_ray.cli.session import OutputFlags, Session


def register(app: typer.Typer) -> None:
    """Add this module's commands to the tree."""
    recipes = typer.Typer(
        help="Recipes: what a whole run shall do, as one YAML file.",
        epilog="Example: expo-ray recipe new --from pair > my.yaml",
        no_args_is_help=True,
    )
    add_command(recipes, new)
    add_command(recipes, check)
    app.add_typer(recipes, name="recipe", rich_help_panel=PANEL)


def new(
    template: Annotated[
        str, typer.Option("--from", metavar="NAME", help="quickstart, pair or sweep.")
    ] = "quickstart",
    *,
    shown: OutputFlags,
) -> None:
    """Print a commented recipe to begin with.

    `quickstart` runs as it is; `pair` and `sweep` take your own models and prompts. The first line
    tells editors where the schema lies, by which they complete and check keys.

    Example: expo-ray recipe new --from pair > my.yaml
    """
    from expo_ray.workflow.recipe_templates import new_recipe

    with Session(**shown) as session:
        text = new_recipe(template)
        # Not through the console, which breaks lines.
        session.emit({"template": template, "recipe": text}, lambda _: _write(text))


def check(
    recipe: Annotated[Path, typer.Argument(help="The recipe.")],
    overrides: OverridesOption = None,
    *,
    shown: OutputFlags,
) -> None:
    """Say what is wrong with a recipe, key by key, or what it would do.

    Looks at what the keys name as well: models, prompts, the output folder, missing extras. Nothing
    is written, and no Ray is started. Exit code 2 where something is wrong.

    Example: expo-ray recipe check my.yaml
    """
    from expo_ray.workflow.recipe_check import check_recipe

    with Session(**shown) as session:
        plan = check_recipe(recipe, overrides or ())
        session.emit(plan, lambda console: render_plan(console, plan))


def _write(text: str) -> None:
    sys.stdout.write(text)
