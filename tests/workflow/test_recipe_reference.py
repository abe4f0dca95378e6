"""What is made from the models of recipes: up to date, and true of every recipe there is."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from expo_ray.errors import ConfigError
from expo_ray.workflow.recipe_file import load_recipe
from expo_ray.workflow.recipe_reference import made_files, recipe_reference
from expo_ray.workflow.recipe_templates import SCHEMA, TEMPLATES, new_recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted(ROOT.glob("pipelines/recipes/**/*.yaml"))
TEMPLATE_FILES = sorted(ROOT.glob("expo_ray/workflow/recipes/*.yaml"))


def faults_of(document: Any) -> list[str]:
    schema = json.loads(SCHEMA.read_text())
    Draft202012Validator.check_schema(schema)
    return [error.message for error in Draft202012Validator(schema).iter_errors(document)]


@pytest.mark.parametrize("path", made_files())
def test_what_is_made_from_the_models_is_up_to_date(path: str) -> None:
    assert (ROOT / path).read_text() == made_files()[path], "run `make recipe-reference`"


@pytest.mark.parametrize("file", RECIPES + TEMPLATE_FILES, ids=lambda file: file.name)
def test_every_recipe_is_right_by_the_schema_that_it_names(file: Path) -> None:
    first, _, _ = file.read_text().partition("\n")
    address = first.removeprefix("# yaml-language-server: $schema=")
    assert (file.parent / address).resolve() == SCHEMA
    assert not faults_of(yaml.safe_load(file.read_text()))
    load_recipe(file)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"sed": 1}, "'sed' was unexpected"),
        ({"seed": -1}, "less than the minimum"),
        ({"selection": {"strategy": "greedy"}}, "'greedy' is not one of"),
        ({"prompts": {"columns": {"promt": "x"}}}, "'promt' is not one of"),
        ({"lab": {"preference_fraction": 0}}, "not valid under any"),
    ],
)
def test_the_schema_refuses_what_the_models_refuse(
    tmp_path: Path, changes: dict[str, Any], fault: str
) -> None:
    document = {**yaml.safe_load(new_recipe("quickstart")), **changes}
    assert any(fault in text for text in faults_of(document))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    with pytest.raises(ConfigError):
        load_recipe(tmp_path / "recipe.yaml")


@pytest.mark.parametrize("template", TEMPLATES)
def test_keys_that_a_template_comments_out_are_keys(template: str) -> None:
    """Such as `  # race_error: 0.03`: taken in, the recipe is still right."""
    text, number = re.subn(r"(?m)^( *)# ([a-z_]+: \S)", r"\1\2", new_recipe(template))
    assert number or template == "quickstart"
    assert not faults_of(yaml.safe_load(text))


def test_the_reference_names_every_key() -> None:
    named = re.findall(r"- \*\*`([\w.]+)`\*\*", recipe_reference())
    assert len(named) == len(set(named))
    recipe = load_recipe(RECIPES[0]).model_dump()
    assert {"lab.seed", "selection.rank_by", "adaptive.reach"} < set(named)
    assert set(recipe) == {key for key in named if "." not in key}


def test_a_template_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        new_recipe("quikstart")
    assert caught.value.expected == "pair, quickstart, sweep"
