"""A rerun notices what its inputs are now: nothing is laid beside what was made of others."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from expo_ray.errors import ConfigError
from expo_ray.progress import NullProgress
from expo_ray.workflow import stages
from expo_ray.workflow.inputs import prepare_models
from expo_ray.workflow.recipe_file import load_recipe
from expo_ray.workflow.run_dir import RunDir
from tests.workflow.test_run import write_recipe


def prepare(recipe: Path) -> None:
    parsed = load_recipe(recipe)
    directory = RunDir(parsed.output)
    with ExitStack() as stack:
        stack.enter_context(directory.claim(recipe_text="", digest=parsed.digest()))
        this = stages.Run(recipe=parsed, directory=directory, address=None,
                          progress=NullProgress(), stack=stack)  # fmt: skip
        prepare_models(this)


@pytest.fixture
def recipe(
    tmp_path: Path,
    pico_pair: tuple[Path, Path],
    pico_reward_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    monkeypatch.chdir(tmp_path)
    for source, name in ((pico_reward_model, "rm"), (pico_pair[1], "aligned")):
        shutil.copytree(source, tmp_path / name)
    (tmp_path / "schema.json").write_text("{}")
    (tmp_path / "own_checks.py").write_text("def right(response, row):\n    return True\n")
    (tmp_path / "gsm.jsonl").write_text('{"prompt": "1 + 1?"}\n{"prompt": "1 + 2?"}\n')
    further = {"path": "gsm.jsonl", "reward_models": ["check:python=own_checks:right"],
               "role": "report"}  # fmt: skip
    return write_recipe(
        tmp_path,
        (pico_pair[0], tmp_path / "aligned"),
        tmp_path / "rm",
        reward_models=[str(tmp_path / "rm"), "check:json-schema=schema.json"],
        prompts={"main": {"path": "prompts.jsonl"}, "gsm": further},
    )


@pytest.mark.parametrize(("name", "before", "after", "what"), [
    ("prompts.jsonl", "number 1.", "number 9.", "the prompts"),
    ("gsm.jsonl", "1 + 2", "1 + 3", "the prompts of the set gsm"),
    ("schema.json", "{}", '{"type": "string"}', "the reward model 1-schema.json"),
    ("own_checks.py", "True", "False",
     "the reward model 0-check-python-own_checks-right of the set gsm"),
    ("rm/tokenizer.json", "{", "{ ", "the reward model 0-rm"),
])  # fmt: skip
def test_an_input_that_was_edited_is_named(
    recipe: Path, name: str, before: str, after: str, what: str
) -> None:
    file = recipe.parent / name
    prepare(recipe)
    text = file.read_text()
    file.write_text(text.replace(before, after, 1))
    prepare(recipe)  # nothing was made yet, so that nothing is mixed
    (recipe.parent / "run" / "diagnosis.json").write_text("{}")
    prepare(recipe)
    file.write_text(text)
    with pytest.raises(ConfigError, match=f"{what} is another one than when this run began"):
        prepare(recipe)


@pytest.mark.parametrize(("folder", "what"), [
    ("rm", "the reward model 0-rm"), ("aligned", "the aligned checkpoint"),
])  # fmt: skip
def test_new_weights_of_the_same_shapes_are_noticed(recipe: Path, folder: str, what: str) -> None:
    prepare(recipe)
    (recipe.parent / "run" / "diagnosis.json").write_text("{}")
    (recipe.parent / folder / "notes.txt").write_text("of no account")
    prepare(recipe)
    file = next((recipe.parent / folder).glob("*.safetensors"))
    weights = bytearray(file.read_bytes())
    weights[-1] ^= 1
    file.write_bytes(weights)
    with pytest.raises(ConfigError, match=f"{what} is another one than when this run began"):
        prepare(recipe)
