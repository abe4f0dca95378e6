"""Flags that are made from models: what was given reaches the model, and errors name the flag."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import BaseModel, Field
from typer.testing import CliRunner

from expo_ray.cli.model_options import FlagsOf, Given, add_command, from_flags, help_of
from expo_ray.errors import ConfigError, argument
from expo_ray.flags import Flag


def pairs(texts: Sequence[str]) -> dict[str, str]:
    if any("=" not in text for text in texts):
        raise ConfigError("no pair", where=argument("extra"))
    return dict(text.split("=", 1) for text in texts)


class Inner(BaseModel):
    width: Annotated[int, Flag(panel="Inner")] = Field(3, ge=1, description="How wide. Or high.")


class Model(BaseModel):
    kind: Annotated[Literal["a", "b"], Flag(panel="Outer")] = Field("a", description="Of [b].")
    share: Annotated[float | None, Flag(name="--part", panel="Outer")] = Field(
        None, le=1, description="Of all."
    )
    names: Annotated[tuple[str, ...], Flag(panel="Outer", repeats=True)] = Field(
        (), description="Names."
    )
    extra: Annotated[dict[str, str], Flag(panel="Outer", parse=pairs, repeats=True)] = Field(
        default_factory=dict, description="Pairs."
    )
    quick: Annotated[bool, Flag(short="-q", panel="Outer")] = Field(False, description="Quick.")
    safe: Annotated[bool, Flag(panel="Outer")] = Field(True, description="Safe.")
    hidden: int = Field(1, description="Has no flag.")
    inner: Inner = Field(Inner(), description="Within.")


def run(*words: str, exclude: tuple[str, ...] = ()) -> tuple[Given, Any, str]:
    seen: list[Given] = []

    def command(first: int = 0, *, settings: Annotated[Given, FlagsOf(Model, exclude)]) -> None:
        """Do it."""
        seen.append(settings)
        from_flags(Model, settings)
        if first:
            raise ConfigError("no", where=argument("first"), hint=f"give {argument('share', 0.5)}")

    # What `from __future__ import annotations` makes of the local name above is not found later.
    command.__annotations__ = {
        "first": int,
        "settings": Annotated[Given, FlagsOf(Model, exclude)],
        "return": None,
    }
    app = typer.Typer()
    add_command(app, command)
    result = CliRunner().invoke(app, list(words))
    return (seen or [{}])[0], result.exception, result.output


def test_only_what_was_given_reaches_the_command() -> None:
    assert run() == ({}, None, "")
    words = ["--kind", "b", "--part", "0.5", "--names", "x", "--names", "y", "-q", "--no-safe"]
    words += ["--extra", "k=v=w", "--width", "7"]
    given, error, _ = run(*words)
    assert error is None
    assert given == {
        "kind": "b",
        "share": 0.5,
        "names": ("x", "y"),
        "extra": {"k": "v=w"},
        "quick": True,
        "safe": False,
        "inner": {"width": 7},
    }


@pytest.mark.parametrize(
    ("words", "where", "got"),
    [
        (("--kind", "c"), "--kind", "c"),
        (("--part", "2"), "--part", "2.0"),
        (("--width", "0"), "--width", "0"),
        (("--extra", "k"), "--extra", None),
    ],
)
def test_an_error_names_the_flag(words: tuple[str, ...], where: str, got: str | None) -> None:
    _, error, _ = run(*words)
    assert isinstance(error, ConfigError)
    assert (error.where, error.got) == (where, got)


def test_other_texts_of_an_error_name_flags_too() -> None:
    _, error, _ = run("--first", "1")
    assert (error.where, error.hint) == ("--first", "give --part 0.5")


def test_a_field_may_be_left_to_the_command() -> None:
    _, error, output = run("--width", "7", exclude=("width",))
    assert isinstance(error, SystemExit) and "No such option" in output


def test_the_help_has_first_sentence_default_and_heading() -> None:
    shown = run("--help")[2]
    assert help_of(Inner, "width") == "How wide."
    assert "How wide. [default: 3]" in shown and "Or high" not in shown
    assert "Of [b]. [default: a]" in shown
    assert "Outer" in shown and "Inner" in shown and "no flag" not in shown
