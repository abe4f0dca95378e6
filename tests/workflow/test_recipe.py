from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import yaml

from expo_ray.errors import ConfigError
from expo_ray.serving import EngineOptions
from expo_ray.workflow.recipe import Recipe
from expo_ray.workflow.recipe_file import RecipeError, load_recipe, validate_recipe

ROOT = Path(__file__).resolve().parents[2]


def _document(**changes: object) -> dict[str, Any]:
    document: dict[str, Any] = {
        "name": "test",
        "output": "out",
        "initial": "./sft",
        "aligned": "./dpo",
        "reward_models": ["./rm", "implicit:beta=0.1", "judge:http://127.0.0.1:9#m"],
        "prompts": {"path": "prompts.jsonl"},
    }
    return {**document, **changes}


def _write(folder: Path, document: object) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def test_paths_resolve_against_the_recipe_file(tmp_path: Path) -> None:
    recipe = load_recipe(_write(tmp_path, _document(aligned="owner/name")))
    assert recipe.output == str(tmp_path / "out")
    assert recipe.initial == str(tmp_path / "sft")
    assert recipe.aligned == "owner/name"  # no such folder here: a Hub id
    assert recipe.reward_models == (
        str(tmp_path / "rm"),
        "implicit:beta=0.1",
        "judge:http://127.0.0.1:9#m",
    )


@pytest.mark.parametrize(
    ("document", "key", "hint"),
    [
        (_document(promts={"path": "x"}), "promts", "did you mean `prompts`?"),
        (
            _document(extrapolation={"alpha": [0.3]}),
            "extrapolation.alpha",
            "did you mean `extrapolation.alphas`?",
        ),
        (_document(lab={"sede": 1}, initial=None), "lab.sede", "did you mean `lab.seed`?"),
    ],
)
def test_an_unknown_key_is_named_with_a_suggestion(
    tmp_path: Path, document: object, key: str, hint: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(_write(tmp_path, document))
    assert caught.value.got == key
    assert caught.value.hint == hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("changes", "fragment"),
    [
        ({"extrapolation": {"alphas": [float("nan")]}}, "extrapolation.alphas"),
        ({"extrapolation": {"alphas": [0]}}, "other than 0"),
        ({"aligned": None}, "aligned"),
        ({"reward_models": []}, "reward_models"),
        ({"lab": {}}, "remove initial, aligned, prompts.path"),
        ({"seed": "many"}, "seed"),
        ({"name": "../up"}, "name"),
        ({"extrapolation": {"max_shard_size": "5 bananas"}}, "extrapolation.max_shard_size"),
        ({"rewarders": {"engine": "auto"}}, "rewarders.engine"),
        ({"loadtest": {"concurrency": [0]}}, "loadtest.concurrency"),
        ({"loadtest": {"concurrency": []}}, "loadtest.concurrency"),
    ],
)
def test_a_wrong_value_is_refused(tmp_path: Path, changes: dict[str, Any], fragment: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe(_write(tmp_path, _document(**changes)))
    assert fragment in caught.value.message


@pytest.mark.parametrize("content", ["[1, 2", "- a\n- b\n", "just text", ""])
def test_what_is_no_mapping_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    with pytest.raises(ConfigError):
        load_recipe(path)
    with pytest.raises(ConfigError):
        load_recipe(tmp_path / "absent.yaml")


def test_overrides_are_laid_over_the_file(tmp_path: Path) -> None:
    path = _write(tmp_path, _document())
    recipe = load_recipe(path, ["extrapolation.alphas=[0.3, 2, 0.3]", "seed=7", "loadtest=null"])
    assert recipe.extrapolation.alphas == pytest.approx((0.3, 2.0))
    assert recipe.seed == 7
    assert recipe.loadtest is None
    for wrong in ("seed", "=1", "seed.x=1", "sampling.temperture=1", "seed=[1"):
        with pytest.raises(ConfigError):
            load_recipe(path, [wrong])


@pytest.mark.parametrize(
    ("overrides", "blamed"),
    [
        (["seed=many"], "--set seed=many"),
        (["extrapolation.alphas=[a]"], "--set extrapolation.alphas=[a]"),
        (["prompts={pth: x}"], "--set prompts={pth: x}"),
        # The file's fault, not that of a key with the same beginning.
        (["sampling.temperature=0.5"], None),
    ],
)
def test_the_override_that_is_wrong_is_named(
    tmp_path: Path, overrides: list[str], blamed: str | None
) -> None:
    changes = {} if blamed else {"sampling": {"temperature_of": 1}}
    path = _write(tmp_path, _document(**changes))
    with pytest.raises(ConfigError) as caught:
        load_recipe(path, overrides)
    assert caught.value.where == (blamed or str(path))


def test_the_digest_covers_what_and_not_how(tmp_path: Path) -> None:
    path = _write(tmp_path, _document())
    digest = load_recipe(path).digest()
    assert load_recipe(path, ["generators.num_replicas=4", "output=x"]).digest() == digest
    assert load_recipe(path, ["extrapolation.alphas=[0.4]"]).digest() != digest
    assert load_recipe(path, ["seed=1"]).digest() != digest


def test_a_relative_output_is_refused_inside_a_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(ConfigError) as caught:
        load_recipe(_write(tmp_path, _document()))
    assert "--set output=" in str(caught.value.hint)
    shared = {"output": str(tmp_path / "shared")}
    assert load_recipe(_write(tmp_path, _document(**shared))).output
    # What the quickstart says would be a folder of one node: the run directory takes laboratories.
    assert load_recipe(_write(tmp_path, _document(**shared, lab_cache="labs"))).lab_cache is None
    kept = str(tmp_path / "labs")
    assert load_recipe(_write(tmp_path, _document(**shared, lab_cache=kept))).lab_cache == kept


@pytest.mark.parametrize("path", sorted((ROOT / "pipelines" / "recipes").rglob("*.yaml")), ids=str)
def test_every_recipe_of_the_project_is_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.output.startswith(str(ROOT))


def test_engine_settings_reach_the_replicas_and_stay_out_of_the_digest(tmp_path: Path) -> None:
    plain = load_recipe(_write(tmp_path, _document()))
    settings = {
        "engine": "vllm",
        "max_model_len": 4096,
        "tensor_parallel_size": 4,
        "engine_args": {"pipeline_parallel_size": 2},
    }
    recipe = load_recipe(_write(tmp_path, _document(generators=settings)))
    assert recipe.generators.options == EngineOptions(
        max_model_len=4096, tensor_parallel_size=4, engine_args={"pipeline_parallel_size": 2}
    )
    # Other hardware may continue a run; a shorter context would give other answers.
    assert recipe.digest() != plain.digest()
    del settings["max_model_len"]
    assert load_recipe(_write(tmp_path, _document(generators=settings))).digest() == plain.digest()
    for engine in ("auto", "transformers"):
        with pytest.raises(ConfigError, match="engine: vllm"):
            load_recipe(_write(tmp_path, _document(generators={**settings, "engine": engine})))


def test_every_key_says_what_it_means() -> None:
    schema = Recipe.model_json_schema()
    models = {"Recipe": schema, **schema["$defs"]}
    silent = [
        f"{model}.{key}"
        for model, part in models.items()
        for key, field in part["properties"].items()
        if not field.get("description")
    ]
    assert not silent


def test_settings_are_described_in_one_way() -> None:
    """By the description of a field: a string below an attribute reaches no help or reference."""
    below = []
    for path in (ROOT / "expo_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef):
                continue
            settings = any("model_config" in ast.unparse(part) for part in node.body)
            pairs = zip(node.body, node.body[1:], strict=False)
            if settings and any(
                isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)
                for field, text in pairs
            ):
                below.append(f"{path.name}: {node.name}")
    assert not below


def test_one_value_in_place_of_a_list_is_told_as_such() -> None:
    with pytest.raises(RecipeError) as caught:
        validate_recipe({"extrapolation": {"alphas": 0.3}}, where="r")
    fault = caught.value.faults["extrapolation.alphas"]
    assert (fault.message.endswith("a list is expected"), fault.hint) == (True, "alphas: [0.3]")
