"""Reading a recipe file: overrides laid over it, faults by their keys, paths made absolute."""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from expo_ray.checkpoints.opening import address_from
from expo_ray.errors import ConfigError, ExpoError, Spelling
from expo_ray.ray_internals import is_submitted_job
from expo_ray.rewards.kinds.registry import kind_of
from expo_ray.selection.guard_settings import FIELDS as GUARD_FIELDS
from expo_ray.workflow.prompt_settings import PromptSet
from expo_ray.workflow.recipe import Recipe
from expo_ray.yaml_text import parse_yaml

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails


class RecipeError(ConfigError):
    """Keys of a recipe are wrong; the error tells of all of them at once.

    Args:
        faults: What is wrong, by its dotted key.
        where: The recipe.
    """

    def __init__(self, faults: Mapping[str, ExpoError], *, where: str) -> None:
        first, *others = faults.values()
        if others:
            super().__init__(
                f"{len(faults)} keys of the recipe are wrong",
                where=where,
                got="\n".join(_line(key, fault, where) for key, fault in faults.items()),
            )
        else:
            super().__init__(**first.texts())  # type: ignore[arg-type]
        self.faults = dict(faults)
        self._file = where

    def __reduce__(self) -> tuple[object, ...]:
        return partial(type(self), where=self._file), (self.faults,)

    def spell(self, spelling: Spelling) -> None:
        """Name settings in another way than Python's, those of each key too."""
        super().spell(spelling)
        for fault in self.faults.values():
            fault.spell(spelling)

    def as_dict(self) -> dict[str, Any]:
        """Return the `error` object of the `--json` contract, with an object for each key."""
        faults = [{"key": key, **fault.as_dict()} for key, fault in self.faults.items()]
        return {**super().as_dict(), "faults": faults}


def load_recipe(
    path: str | Path, overrides: Sequence[str] = (), *, in_job: bool | None = None
) -> Recipe:
    """Read a recipe file and apply `key=value` overrides.

    Args:
        path: YAML file. Its paths are meant against its folder.
        overrides: Dotted keys and YAML values: `extrapolation.alphas=[0.3,0.5]`.
        in_job: Whether it runs as a submitted job, where no relative output will do; None looks.

    Raises:
        ConfigError: The file is missing or malformed, a key is unknown or a value is out of range.
    """
    file = Path(path)
    document = _read_document(file)
    for override in overrides:
        _apply_override(document, override)
    try:
        recipe = validate_recipe(document, where=str(file))
    except RecipeError as error:
        # A wrong override is not the file's fault. It is blamed for its key and those below it.
        for key, fault in error.faults.items():
            blamed = [t for t in overrides if f"{key}.".startswith(f"{_key_of(t)}.")]
            fault.where = f"--set {blamed[-1]}" if blamed else fault.where
        raise RecipeError(error.faults, where=str(file)) from error
    if in_job is None:
        in_job = is_submitted_job()
    return _resolve_paths(recipe, file.resolve().parent, in_job=in_job)


def validate_recipe(document: Mapping[str, Any], *, where: str) -> Recipe:
    """Turn a plain mapping into a `Recipe`.

    Raises:
        RecipeError: Names every wrong key by its dotted path, unknown ones with a suggestion.
    """
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        # Unknown keys first: a misspelt key often makes a required one look missing.
        details = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
        # Only says that another key is wrong.
        details = [item for item in details if item["type"] != "default_factory_not_called"]
        faults = dict(_fault(item, where) for item in details)
        # A list whose only value is wrong is called too short as well.
        innermost = {
            key: fault
            for key, fault in faults.items()
            if not any(other.startswith(f"{key}.") for other in faults)
        }
        raise RecipeError(innermost, where=where) from error


def _read_document(file: Path) -> dict[str, Any]:
    try:
        document = parse_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "cannot read the recipe",
            where=file,
            got=getattr(error, "strerror", None) or error,
            hint="`expo-ray recipe new --from pair > recipe.yaml` writes one to begin with",
        ) from error
    except ValueError as error:
        raise ConfigError("the recipe is not valid YAML", where=file, got=error) from error
    if not isinstance(document, dict):
        raise ConfigError(
            "a recipe is a mapping of keys to values",
            where=file,
            got=type(document).__name__,
            expected="mapping",
        )
    return document


def _fault(details: ErrorDetails, where: str) -> tuple[str, ConfigError]:
    """Return the dotted key of what pydantic found, and the error that tells it."""
    key = ".".join(str(part) for part in details["loc"]) or "(recipe)"
    if details["type"] == "extra_forbidden" or _is_no_set(details):
        hint = _suggest(details["loc"])
        return key, ConfigError(f"unknown recipe key `{key}`", where=where, got=key, hint=hint)
    message = details["msg"].removeprefix("Value error, ")
    value = details["input"]
    is_list_wanted = details["type"] == "tuple_type"
    message = "a list is expected" if is_list_wanted else message
    fault = ConfigError(
        f"recipe key `{key}`: {message}",
        where=where,
        got=None if isinstance(value, dict) else repr(value),
        hint=f"{key.rpartition('.')[2]}: [{value}]" if is_list_wanted else None,
    )
    return key, fault


def _is_no_set(details: ErrorDetails) -> bool:
    """Return whether a key of the prompts is unknown: what holds no keys is no set of prompts."""
    location = details["loc"]
    return details["type"] == "model_type" and location[0] == "prompts" and len(location) == 2


def _line(key: str, fault: ExpoError, where: str) -> str:
    """Return a fault as one of several."""
    place = f" ({fault.told('where')})" if fault.where and fault.where != where else ""
    facts = {name: fault.told(name) for name in ("got", "expected")}
    told = [f"{name} {value}" for name, value in facts.items() if value is not None]
    what = str(fault.told("message")).removeprefix(f"recipe key `{key}`: ")
    return "; ".join((f"`{key}`: {what}{place}", *told, *filter(None, [fault.told("hint")])))


def _suggest(location: tuple[int | str, ...]) -> str:
    fields = _known_fields(Recipe, location[:-1])
    prefix = ".".join(str(part) for part in (*location[:-1], ""))
    name = str(location[-1])
    if GUARD_FIELDS.get(name) in fields:  # the name that `--guard` takes
        return f"did you mean `{prefix}{GUARD_FIELDS[name]}`?"
    if close := difflib.get_close_matches(name, fields, n=1):
        return f"did you mean `{prefix}{close[0]}`?"
    if len(location) == 1:
        inner = [key for key in fields if name in _known_fields(Recipe, (key,))]
        if inner:
            return f"did you mean {' or '.join(f'`{key}.{name}`' for key in inner)}?"
    return f"known keys: {', '.join(f'{prefix}{field}' for field in sorted(fields))}"


def _known_fields(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Return the field names of the (possibly nested, possibly optional) model at `location`."""
    for part in location:
        if str(part) not in model.model_fields:  # the name of a set of prompts
            model = PromptSet
            continue
        annotation = model.model_fields[str(part)].annotation
        candidates = (annotation, *getattr(annotation, "__args__", ()))
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return list(model.model_fields)


def _key_of(override: str) -> str:
    return override.partition("=")[0].strip()


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(
            "an override is key=value", where="--set", got=override, hint="--set seed=7"
        )
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise ConfigError("the value is not valid YAML", where=f"--set {key}", got=text) from error
    *parents, last = key.strip().split(".")
    node = document
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(
                f"`{parent}` holds a value, not keys", where=f"--set {key}", got=repr(child)
            )
        node = child
    node[last] = value


def _is_uri(location: str) -> bool:
    return "://" in location


def _against(reward_model: str, folder: Path) -> str:
    """Make the paths of a reward model absolute; a bare `implicit` is no folder."""
    kind = kind_of(reward_model)
    is_path = not kind.prefix
    return kind.against(address_from(folder, reward_model) if is_path else reward_model, folder)


def _resolve_paths(recipe: Recipe, folder: Path, *, in_job: bool) -> Recipe:
    """Make local paths absolute, against the folder of the recipe file."""
    if in_job and not _is_uri(recipe.output) and not Path(recipe.output).is_absolute():
        raise ConfigError(
            "a relative output inside a submitted job lands on one node's scratch folder",
            where="output",
            got=recipe.output,
            expected="an absolute path that all nodes share, or a URI",
            hint="add --set output=/shared/path to the entry point",
        )

    def resolve(path: str | None) -> str | None:
        return None if path is None else address_from(folder, path)

    def judges(texts: Sequence[str]) -> tuple[str, ...]:
        return tuple(_against(text, folder) for text in texts)

    def resolve_set(one: PromptSet) -> PromptSet:
        changes = {"path": resolve(one.path), "reward_models": judges(one.reward_models)}
        return one.model_copy(update=changes)

    output = recipe.output
    if not _is_uri(output):
        output = os.path.normpath(folder / Path(output).expanduser())
    cache = recipe.lab_cache
    if cache is not None and in_job and not Path(cache).is_absolute():
        cache = None  # as for the output; the run directory is shared, and takes it
    if cache is not None:
        cache = os.path.normpath(folder / Path(cache).expanduser())
    return recipe.model_copy(
        update={
            "output": output,
            "lab_cache": cache,
            "initial": resolve(recipe.initial),
            "aligned": resolve(recipe.aligned),
            "trajectory": recipe.trajectory
            and recipe.trajectory.model_copy(update={"file": resolve(recipe.trajectory.file)}),
            "reward_models": judges(recipe.reward_models),
            "prompts": recipe.prompts.model_copy(
                update={
                    "path": resolve(recipe.prompts.path),
                    **{name: resolve_set(one) for name, one in recipe.prompts.sets.items()},
                }
            ),
            "rewarders": recipe.rewarders.model_copy(
                update={"anchors": resolve(recipe.rewarders.anchors)}
            ),
        }
    )
