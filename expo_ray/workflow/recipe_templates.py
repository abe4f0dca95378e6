"""Recipes to begin with, as the package brings them; light, so that the command line may ask."""

from __future__ import annotations

from pathlib import Path

from expo_ray.errors import ConfigError

SCHEMA = Path(__file__).with_name("recipe.schema.json")
"""What editors complete and check recipes by."""
RUNS_FOLDER = "runs"
"""Where recipes made from a template put their results, seen from the recipe."""
_FOLDER = Path(__file__).with_name("recipes")
TEMPLATES = tuple(sorted(file.stem for file in _FOLDER.glob("*.yaml")))


def new_recipe(template: str, *, schema: str = str(SCHEMA), runs: str = RUNS_FOLDER) -> str:
    """Return the text of a commented recipe.

    Args:
        template: `quickstart` (trains its own tiny models), `pair` or `sweep` (your own).
        schema: Where the editor finds the schema: a path, as seen from the recipe, or a URL.
        runs: Folder of the results, as seen from the recipe.

    Raises:
        ConfigError: There is no such template.

    Example:
        >>> from pathlib import Path
        >>> text = expo_ray.new_recipe("quickstart")
        >>> _ = Path("quickstart.yaml").write_text(text)
    """
    if template not in TEMPLATES:
        raise ConfigError(
            "no such template", where="--from", got=template, expected=", ".join(TEMPLATES)
        )
    text = (_FOLDER / f"{template}.yaml").read_text(encoding="utf-8")
    text = text.replace(f"$schema=../{SCHEMA.name}", f"$schema={schema}", 1)
    return text.replace(f": {RUNS_FOLDER}/", f": {runs}/")
