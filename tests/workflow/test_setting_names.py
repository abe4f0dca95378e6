"""Whoever gave a setting reads its name as he wrote it: a flag, a key of a recipe, an argument."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from expo_ray.cli.main import app
from expo_ray.errors import ConfigError
from expo_ray.extrapolation import extrapolate
from expo_ray.workflow.run import run, select
from expo_ray.workflow.setting_names import in_python, in_recipe
from tests.workflow.test_run import write_recipe

Pair = tuple[Path, Path]


def flag(pair: Pair, *words: str) -> ConfigError:
    arguments = ["extrapolate", *map(str, pair), "out", "--alpha", "0.5", *words]
    error = CliRunner().invoke(app, arguments).exception
    assert isinstance(error, ConfigError)
    return error


def keyword(pair: Pair, **settings: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        extrapolate(*pair, "out", **{"alpha": 0.5, "address": "inline"} | settings)
    return caught.value


def test_one_fault_by_three_ways_in(
    pico_pair: Pair, pico_reward_model: Path, tmp_path: Path
) -> None:
    by_flag = flag(pico_pair, "--extra-tensors", "move:x")
    by_keyword = keyword(pico_pair, extra_tensors=["move:x"])
    path = write_recipe(tmp_path, pico_pair, pico_reward_model)
    with pytest.raises(ConfigError) as caught:
        run(path, overrides=["extrapolation.extra_tensors=[move:x]"])
    where = [error.where for error in (by_flag, by_keyword, caught.value)]
    assert where == ["--extra-tensors", "extra_tensors=", "extrapolation.extra_tensors"]
    assert by_flag.got == by_keyword.got == caught.value.got == "move:x"


@pytest.mark.parametrize(
    ("words", "settings", "where", "named"),
    [
        (
            ("--max-shard-size", "5XB"),
            {"max_shard_size": "5XB"},
            "--max-shard-size",
            "max_shard_size=",
        ),
        (("--output-dtype", "f8"), {"output_dtype": "f8"}, "--output-dtype", "output_dtype="),
        (("--vocab-policy", "x"), {"vocab_policy": "x"}, "--vocab-policy", "vocab_policy="),
        (("--transform", "x"), {"transforms": ["x"]}, "--transform", "transforms="),
        (("--private",), {"private": True}, "--private", "private="),
        (("--alpha-rules", "no"), {"alpha_rules": "no"}, "--alpha-rules no", "alpha_rules=no"),
    ],
)
def test_flags_and_arguments(
    words: tuple[str, ...],
    settings: dict[str, Any],
    where: str,
    named: str,
    pico_pair: Pair,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    by_flag, by_keyword = flag(pico_pair, *words), keyword(pico_pair, **settings)
    assert (by_flag.where, by_keyword.where) == (where, named)
    assert not list(tmp_path.iterdir())


def test_a_hint_names_it_too(pico_pair: Pair, tmp_path: Path) -> None:
    output = tmp_path / "out"
    extrapolate(*pico_pair, output, alpha=0.5, address="inline")
    words = ["extrapolate", *map(str, pico_pair), str(output), "--alpha", "0.7"]
    by_flag = CliRunner().invoke(app, [*words, "--address", "inline"]).exception
    with pytest.raises(ConfigError) as caught:
        extrapolate(*pico_pair, output, alpha=0.7, address="inline")
    assert isinstance(by_flag, ConfigError)
    assert "--overwrite" in str(by_flag.hint) and "overwrite=True" in str(caught.value.hint)


def test_select_speaks_of_its_arguments(tmp_path: Path) -> None:
    given: dict[str, Any] = {"prompts": "p.jsonl", "output": tmp_path / "run"}
    with pytest.raises(ConfigError) as caught:
        select("sft", "dpo", **given, strategy="random")
    assert caught.value.where == "strategy="
    assert "recipe" not in caught.value.message
    with pytest.raises(ConfigError) as caught:
        select("sft", "dpo", **given, strategy="random", max_alpha=-1.0)
    assert caught.value.message == "2 settings are wrong"
    assert "(strategy=)" in str(caught.value.got) and "(max_alpha=)" in str(caught.value.got)
    words = ["select", "sft", "dpo", "--prompts", "p.jsonl", "--output", str(tmp_path / "run")]
    error = CliRunner().invoke(app, [*words, "--strategy", "random", "--max-alpha", "-1"]).exception
    assert isinstance(error, ConfigError)
    assert "(--strategy)" in str(error.got) and "(--max-alpha)" in str(error.got)
    faults = error.as_dict()["faults"]  # type: ignore[typeddict-item]
    assert [fault["where"] for fault in faults] == ["--strategy", "--max-alpha"]  # type: ignore[index]


def test_select_tells_each_guard_that_is_wrong(tmp_path: Path) -> None:
    words = ["select", "sft", "dpo", "--prompts", "p.jsonl", "--output", str(tmp_path / "run")]
    wrong = ["--guard", "length-ratio=-1", "--guard", "null-rewards=2"]
    error = CliRunner().invoke(app, [*words, *wrong]).exception
    assert isinstance(error, ConfigError)
    told = {fault["key"]: fault["where"] for fault in error.as_dict()["faults"]}  # type: ignore
    assert told == {
        "length-ratio": "--guard length-ratio",
        "null-rewards": "--guard null-rewards",
    }


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("max_shard_size", "extrapolation.max_shard_size"),
        ("alpha", "extrapolation.alphas"),
        ("reward_model", "reward_models"),
        ("num_prompts", "prompts.sample"),
        ("seed", "seed"),
        ("address", None),
    ],
)
def test_names_in_recipes(name: str, key: str | None) -> None:
    assert in_recipe(name) == key
    assert key is None or in_python(key) in (name, f"{name}s")


def test_a_key_that_stands_for_a_guard() -> None:
    assert in_python("selection.max_length_ratio") == "guards"
    assert in_python("extrapolation.alphas.0") == "alphas"
    assert in_python("(recipe)") is None
