"""Checking a recipe: every fault by its key, and a right one says what it would do."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from expo_ray.cli.main import main
from expo_ray.workflow.recipe_check import check_recipe
from expo_ray.workflow.recipe_file import RecipeError, load_recipe
from expo_ray.workflow.recipe_templates import TEMPLATES


def new(folder: Path, template: str, capsys: pytest.CaptureFixture[str]) -> Path:
    with pytest.raises(SystemExit) as end:
        main(["recipe", "new", "--from", template])
    assert end.value.code == 0
    file = folder / f"{template}.yaml"
    file.write_text(capsys.readouterr().out)
    return file


def called(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    with pytest.raises(SystemExit) as end:
        main(["recipe", "check", *arguments, "--json"])
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return int(end.value.code or 0), answer


@pytest.fixture
def own_models(tmp_path: Path, pico_pair: tuple[Path, Path], pico_reward_model: Path) -> Path:
    """A folder with what the templates name."""
    for name, model in zip(("sft", "dpo"), pico_pair, strict=True):
        (tmp_path / name).symlink_to(model)
    (tmp_path / "reward-model").symlink_to(pico_reward_model)
    shutil.copytree(pico_reward_model, tmp_path / "second-reward-model")
    rows = [json.dumps({"prompt": f"Question {number}?"}) for number in range(40)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(rows))
    return tmp_path


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_new_recipe_says_what_it_would_do(
    own_models: Path, template: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = new(own_models, template, capsys)
    # Not every machine has the engine of the sweep.
    engine = ["--set", "generators.engine=transformers"] if template == "sweep" else []
    before = sorted(own_models.iterdir())
    code, answer = called([str(file), *engine], capsys)
    assert code == 0, answer
    assert answer["output"] == str(own_models / "runs" / template)
    assert {"generation", "scoring"} <= {stage["stage"] for stage in answer["stages"]}
    assert sorted(own_models.iterdir()) == before


def test_what_the_keys_name_is_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = new(tmp_path, "pair", capsys)
    code, answer = called([str(file), "--set", "rewarders.anchors=absent.json"], capsys)
    faults = {fault["key"]: fault for fault in answer["error"]["faults"]}
    assert code == 2
    assert list(faults) == [
        "initial",
        "aligned",
        "reward_models.0",
        "prompts.path",
        "rewarders.anchors",
    ]
    assert faults["initial"]["where"] == str(tmp_path / "sft")
    assert answer["error"]["got"].count("\n") == 4
    assert not (tmp_path / "runs").exists()


def test_all_wrong_keys_are_told_at_once_each_where_it_stands(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    document = {"name": "n", "output": "o", "lab": {"sede": 1}, "seed": -1, "loadtest": [1]}
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(RecipeError) as caught:
        load_recipe(file, ["selection.min_pairs=1"])
    error = pickle.loads(pickle.dumps(caught.value))
    assert error.message == "4 keys of the recipe are wrong"
    assert {key: fault.where for key, fault in error.faults.items()} == {
        "lab.sede": str(file),
        "seed": str(file),
        "loadtest": str(file),
        "selection.min_pairs": "--set selection.min_pairs=1",
    }
    assert "`lab.sede`" in error.got
    assert "did you mean `lab.seed`?" in error.got


def test_one_wrong_key_is_told_as_any_error(own_models: Path) -> None:
    file = own_models / "recipe.yaml"
    document = {
        **{"name": "n", "output": "o", "initial": "sft", "aligned": "dpo"},
        **{"reward_models": ["implicit:beta=x"], "prompts": {"path": "prompts.jsonl"}},
    }
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(RecipeError) as caught:
        check_recipe(file)
    assert caught.value.message.startswith("recipe key `reward_models.0`: unknown kind")
    assert caught.value.got == "'implicit:beta=x'"
    assert caught.value.exit_code == 2


def test_a_check_of_ones_own_is_tried_and_its_service_is_not_asked(
    own_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(own_models)
    (own_models / "mine.py").write_text("def fails(response, row):\n    raise LookupError\n")
    file = own_models / "recipe.yaml"
    document = {
        **{"name": "n", "output": "o", "initial": "sft", "aligned": "dpo"},
        **{"reward_models": ["check:python=mine:fails", "check:http=http://127.0.0.1:9/check"]},
        "prompts": {"path": "prompts.jsonl"},
    }
    file.write_text(yaml.safe_dump(document))
    with pytest.raises(RecipeError) as caught:
        check_recipe(file)
    assert caught.value.message == (
        "recipe key `reward_models.0`: a check cannot say of any answer whether it is right"
    )
    assert "raises LookupError" in str(caught.value.got)


def test_a_missing_extra_is_the_fault_of_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = new(tmp_path, "quickstart", capsys)
    for package in ("trl", "wandb"):
        monkeypatch.setitem(sys.modules, package, None)
    code, answer = called([str(file), "--set", "track=[wandb]"], capsys)
    assert code == 2
    hints = {fault["key"]: fault["hint"] for fault in answer["error"]["faults"]}
    assert hints == {
        "lab": "pip install 'expo-ray[lab]'",
        "track": "pip install 'expo-ray[wandb]'",
    }


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("selection.length-ratio", "`selection.max_length_ratio`"),  # the name that --guard takes
        ("max_tokens", "`sampling.max_tokens`"),
    ],
)
def test_a_key_by_another_name_or_on_another_level_is_known(
    key: str, meant: str, own_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(new(own_models, "pair", capsys), [f"{key}=5"])
    assert meant in str(caught.value.hint)


def test_an_output_that_holds_something_else_is_told(
    own_models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = new(own_models, "pair", capsys)
    (own_models / "runs" / "pair").mkdir(parents=True)
    (own_models / "runs" / "pair" / "notes.txt").write_text("mine")
    code, answer = called([str(file)], capsys)
    assert code == 2
    assert "no run directory" in answer["error"]["message"]
