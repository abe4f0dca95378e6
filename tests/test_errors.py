"""Errors name a setting by the name that its user gave it."""

from __future__ import annotations

import pickle

import pytest

from expo_ray.errors import ConfigError, ExpoError, argument, spelled


def error() -> ConfigError:
    return ConfigError(
        f"{argument('rate')} is too high",
        where=argument("max_rate"),
        got=9,
        hint=f"lower {argument('rate', 3)}, or give {argument('force', True)}",
    )


def shout(name: str, value: str | None) -> str | None:
    return None if name == "force" else name.upper() + (f" {value}" if value else "")


def test_python_names_arguments() -> None:
    made = error()
    assert (made.message, made.where) == ("rate= is too high", "max_rate=")
    assert made.hint == "lower rate=3, or give force=True"
    assert str(made).isprintable() or "\n" in str(made)
    assert "\x02" not in str(made) + str(made.as_dict())


def test_the_innermost_way_in_names_what_it_has() -> None:
    with (
        pytest.raises(ExpoError) as caught,
        spelled(lambda name, value: f"--{name}"),
        spelled(shout),
    ):
        raise error()
    assert caught.value.where == "MAX_RATE"
    assert caught.value.hint == "lower RATE 3, or give --force"
    assert caught.value.message == "RATE is too high"


def test_names_survive_the_way_from_another_process() -> None:
    found = pickle.loads(pickle.dumps(error()))
    found.spell(shout)
    assert (found.where, found.got) == ("MAX_RATE", "9")


def test_a_text_that_was_told_anew_stays() -> None:
    made = error()
    made.where = "recipe.yaml"
    made.tell("hint", f"{made.told('hint')}; or drop {argument('max_rate')}")
    made = pickle.loads(pickle.dumps(made))
    made.spell(shout)
    assert made.where == "recipe.yaml"
    assert made.hint == "lower RATE 3, or give force=True; or drop MAX_RATE"
