"""The schema of recipes and the page that lists their keys, both made from the models.

`make recipe-reference` writes them, and the quickstart of the checkout from the packaged one. A
test compares, so none of them can say what the models do not.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from expo_ray.selection.gates import MAIN
from expo_ray.workflow.recipe import Recipe
from expo_ray.workflow.recipe_templates import SCHEMA, new_recipe

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
    "multipleOf": "a multiple of {}",
    "pattern": "matching `{}`",
}
_HEAD = """\
# Recipe reference

Every key of a recipe. `make recipe-reference` writes this page from the models that read recipes: \
change the descriptions there. [Recipes](recipes.md) explains how they go together, and the same \
facts stand in `recipe.schema.json` for editors.

A key that a recipe leaves out has its default. An unknown key is refused. `null` is YAML's word \
for nothing.
"""


class _Untitled(GenerateJsonSchema):
    """Without titles: `Num Replicas` says nothing that `num_replicas` does not."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def recipe_schema() -> dict[str, Any]:
    """Return the JSON schema of recipes.

    It knows keys, types, ranges and defaults. What binds several keys, such as the models that a
    recipe without `lab` needs, only `expo-ray recipe check` knows.
    """
    schema = Recipe.model_json_schema(schema_generator=_Untitled)
    schema["$defs"]["PromptSettings"]["properties"][MAIN] = {
        "$ref": "#/$defs/PromptSettings",
        "description": "The prompts that choose alpha, where there are further sets.",
    }
    return {"$schema": _DIALECT, **schema, "title": "Recipe of expo-ray"}


def recipe_reference() -> str:
    """Return the page of all keys, in Markdown."""
    schema = recipe_schema()
    return "\n".join((_HEAD, *_section(schema, "", schema["$defs"]), ""))


def _section(model: Mapping[str, Any], prefix: str, models: Mapping[str, Any]) -> Iterator[str]:
    """Yield the keys of a model, then the sections of those that hold models."""
    nested = {}
    for key, field in model["properties"].items():
        if key == MAIN:  # the same keys once more
            continue
        needed = key in model.get("required", ())
        inner = _model_of(field)
        if inner is not None:
            nested[key] = models[inner]
            takes = "keys or null, see below" if "anyOf" in field else "keys, see below"
            default = "`null`" if field.get("default", {}) is None else "theirs"
        else:
            takes, default = _takes(field), _default(field)
        facts = f"{takes}; {'required' if needed else f'default {default}'}"
        meaning = field.get("description") or models[str(inner)]["description"]
        yield f"- **`{prefix}{key}`** ({facts}). {meaning}"
    sets = model.get("additionalProperties")
    if isinstance(sets, dict):
        nested["NAME"] = models[sets["$ref"].rpartition("/")[2]]
    for key, inner_model in nested.items():
        meaning = inner_model["description"].replace("\n\n", " ")
        yield f"\n## `{prefix}{key}`\n\n{meaning}\n"
        yield from _section(inner_model, f"{prefix}{key}.", models)


def _model_of(field: Mapping[str, Any]) -> str | None:
    """Return the name of the model that a key holds, None where it holds a value."""
    references = [choice.get("$ref") for choice in (field, *field.get("anyOf", ()))]
    return next((text.rpartition("/")[2] for text in references if text), None)


def _takes(field: Mapping[str, Any]) -> str:
    """Return in words what values a key takes."""
    if "anyOf" in field:
        return " or ".join(_takes(choice) for choice in reversed(field["anyOf"]))
    if "enum" in field:
        return "one of " + ", ".join(f"`{choice}`" for choice in field["enum"])
    if field["type"] == "array":
        least = f", at least {field['minItems']}" if "minItems" in field else ""
        return f"list{least} (each: {_takes(field['items'])})"
    if field["type"] == "object":
        return "mapping"
    bounds = [text.format(field[name]) for name, text in _BOUNDS.items() if name in field]
    return ", ".join((field["type"], *bounds))


def _default(field: Mapping[str, Any]) -> str:
    """Return a default as YAML has it."""
    if "default" not in field:  # made anew each time: empty, or by other keys
        return {"object": "`{}`", "array": "`[]`"}.get(field["type"], "depends")
    value = field["default"]
    return f"`{value if isinstance(value, str) else json.dumps(value)}`"


def made_files() -> dict[str, str]:
    """Return what is made from the models and templates: the text by its path in the checkout."""
    schema_path = f"expo_ray/workflow/{SCHEMA.name}"
    return {
        schema_path: json.dumps(recipe_schema(), indent=2) + "\n",
        "docs/recipe-reference.md": recipe_reference(),
        "pipelines/recipes/quickstart.yaml": new_recipe(
            "quickstart", schema=f"../../{schema_path}", runs="../../runs"
        ),
    }


if __name__ == "__main__":
    for path, text in made_files().items():
        (Path(__file__).parents[2] / path).write_text(text, encoding="utf-8")
