"""Flags from models: what a setting is, is declared once, with the setting.

A command takes the flags of a model as one parameter, a dictionary of what was given:

    def generate(..., *, sampling: Annotated[Given, FlagsOf(SamplingParams)]) -> None:

and `add_command` turns that into one flag for each field that carries a `Flag`.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, cast, get_args, get_origin

import typer
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from rich.markup import escape
from typer.core import TyperArgument, TyperCommand, TyperOption

from expo_ray.errors import ConfigError, argument, spelled
from expo_ray.flags import Flag

Given = dict[str, Any]
"""The settings of a model that stood on the command line, by their names."""
Settings = TypeVar("Settings", bound=BaseModel)
FIRST = "Options"
"""Heading of what everyone needs; typer shows it before all others."""
COMMON = "Cluster and output"
"""Heading of what every command has."""
_METAVARS = {bool: "", int: "N", float: "X", str: "TEXT", Path: "FILE"}


@dataclass(frozen=True)
class FlagsOf:
    """Marks a command's parameter that stands for the flags of a model."""

    model: type[BaseModel]
    exclude: tuple[str, ...] = ()
    """Fields that the command declares itself, or does not have."""


def add_command(
    app: typer.Typer,
    function: Callable[..., None],
    *,
    name: str | None = None,
    panel: str | None = None,
) -> None:
    """Add a command to a tree; errors name its settings by their flags.

    Args:
        app: The tree.
        function: Takes flags, and `Given` where it takes those of a model.
        name: Of the command; None takes the function's.
        panel: Heading of the command in the help of the tree.
    """
    signature = inspect.signature(function, eval_str=True)
    models: dict[str, FlagsOf] = {}
    parameters: list[inspect.Parameter] = []
    for each in signature.parameters.values():
        marks = getattr(each.annotation, "__metadata__", ())
        flags = next((mark for mark in marks if isinstance(mark, FlagsOf)), None)
        if flags is None:
            parameters.append(each)
        else:
            models[each.name] = flags
            parameters += map(_parameter, _settings(flags.model, flags.exclude))

    @functools.wraps(function)
    def run(**values: Any) -> None:
        given = {parameter: _take(flags, values) for parameter, flags in models.items()}
        function(**values, **given)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    app.command(name=name, rich_help_panel=panel, cls=_Command)(run)


def from_flags(model: type[Settings], given: Mapping[str, Any]) -> Settings:
    """Build settings from what was given.

    Raises:
        ConfigError: Names the first flag whose value is out of range.
    """
    try:
        return model(**given)
    except ValidationError as error:
        first = error.errors()[0]
        known = {each.name for each in _settings(model)}
        named = [argument(str(part)) for part in first["loc"] if part in known]
        raise ConfigError(
            first["msg"].removeprefix("Value error, "),
            where=named[-1] if named else None,
            got=first["input"],
        ) from error


def help_of(model: type[BaseModel], name: str) -> str:
    """Return what the help says of a setting: the first sentence of its description."""
    text = " ".join((model.model_fields[name].description or "").split())
    return escape(re.split(r"(?<=\.) (?=[A-Z0-9`])", text, maxsplit=1)[0])


class _Command(TyperCommand):
    """A command whose help leaves room for its texts, and whose errors name its flags."""

    def __init__(self, *args: Any, **how: Any) -> None:
        super().__init__(*args, **how)
        for each in cast("list[TyperOption | TyperArgument]", self.params):
            if isinstance(each, TyperOption):
                each.rich_help_panel = each.rich_help_panel or FIRST
                if each.metavar is None:
                    each.metavar = _METAVARS[_plain_type(each.type_descriptor.annotation)]
            else:
                each.metavar = each.name.upper()
            each.min = each.max = None  # not shown; the type checks them

    def get_help_option(self, ctx: Any) -> TyperOption | None:
        option = super().get_help_option(ctx)
        if option is not None:
            option.rich_help_panel, option.metavar = COMMON, ""
        return option

    def invoke(self, ctx: Any) -> Any:
        with spelled(self._spell):
            return super().invoke(ctx)

    def _spell(self, name: str, value: str | None) -> str:
        flag = f"--{name.replace('_', '-')}"  # of another command
        for each in self.params:
            if each.name in (name, f"{name}s"):
                is_flag = isinstance(each, TyperOption)
                flag = max(each.opts, key=len) if is_flag else name.upper()
        return flag if value in (None, "True") else f"{flag} {value}"


@dataclass(frozen=True)
class _Setting:
    """A field that has a flag."""

    name: str
    field: FieldInfo
    flag: Flag
    model: type[BaseModel]
    path: tuple[str, ...]
    """Names of the fields that lead from the outermost model to its own."""


def _settings(
    model: type[BaseModel], exclude: tuple[str, ...] = (), path: tuple[str, ...] = ()
) -> Iterator[_Setting]:
    """Yield the fields that have flags, those of models within the model too."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _settings(kind, exclude, (*path, name))
        for flag in field.metadata:
            if isinstance(flag, Flag) and name not in exclude:
                yield _Setting(name, field, flag, model, path)


def _parameter(each: _Setting) -> inspect.Parameter:
    """Return the parameter that typer makes a flag from; None stands for what was left out."""
    kind: Any = str if each.flag.parse else _plain_type(each.field.annotation)
    written = each.flag.name or f"--{each.name.replace('_', '-')}"
    default, text = each.field.default, help_of(each.model, each.name)
    if each.flag.repeats:
        text = text.removesuffix(".") + "; may repeat."
    if kind is not bool:
        text += _default_text(default)
        default, kind = None, (list[kind] if each.flag.repeats else kind) | None
    elif default:
        written += f"/--no-{written.removeprefix('--')}"
    option = typer.Option(
        *(word for word in (written, each.flag.short) if word),
        help=text,
        metavar=each.flag.metavar,
        show_default=False,
        rich_help_panel=each.flag.panel,
    )
    return inspect.Parameter(
        each.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind, option],
    )


def _take(flags: FlagsOf, values: dict[str, Any]) -> Given:
    """Take a model's settings out of the values of all flags; what was left out is not there."""
    given: Given = {}
    for each in _settings(flags.model, flags.exclude):
        value = values.pop(each.name)
        if value in (None, [], ()) or value is each.field.default:
            continue
        if each.flag.parse:
            value = each.flag.parse(value)
        elif each.flag.repeats:
            value = tuple(value)
        place = given
        for name in each.path:
            place = place.setdefault(name, {})
        place[each.name] = value
    return given


def _plain_type(annotation: Any) -> Any:
    """Return what the text of a flag is read as; the model checks the rest."""
    if get_origin(annotation) is Literal:
        return str
    inner = [each for each in get_args(annotation) if each is not NoneType]
    return _plain_type(inner[0]) if inner else annotation


def _default_text(default: Any) -> str:
    if not isinstance(default, int | float | str):
        return ""
    shown = f"{default:g}" if isinstance(default, float) else default
    return f" [dim]\\[default: {shown}][/dim]"
