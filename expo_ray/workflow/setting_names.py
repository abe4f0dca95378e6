"""What a setting is called in Python and in a recipe, so that errors name it as it was given."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from expo_ray.selection.guard_settings import FIELDS
from expo_ray.workflow.recipe import Recipe

# Where the names differ by more than a plural.
_KEYS = {
    "adaptive": "adaptive.num_trials",
    "columns": "prompts.columns",
    "num_prompts": "prompts.sample",
    "prompts": "prompts.path",
    "trajectory": "trajectory.file",
    "use_cache": "rewarders.cache",
}
# A rule that takes in several keys is blamed on the one that most often breaks it.
_GROUPS = {"generators": "engine_args", "rewarders": "anchors", "selection": "strategy"}


def in_recipe(name: str, value: str | None = None) -> str | None:
    """Return the key of a recipe that an argument of a function stands for.

    Args:
        name: Of the argument.
        value: What it is set to, if that is to be shown.

    Returns:
        `extrapolation.max_shard_size`, or None where recipes have no such key.
    """
    keys = {path.rpartition(".")[2]: path for path in reversed([*_keys(Recipe)])} | _KEYS
    key = keys.get(name, keys.get(f"{name}s"))
    return key if key is None or value is None else f"{key}: {value}"


def in_python(key: str) -> str | None:
    """Return the argument that a key of a recipe stands for; None where it is no single one.

    Args:
        key: Dotted, such as `extrapolation.alphas` or `extrapolation.alphas.0`.
    """
    parts = [part for part in key.split(".") if not part.isdecimal()]
    for name, known in _KEYS.items():
        if ".".join(parts).startswith(known):
            return name
    if parts[-1] in FIELDS.values():
        return "guards"
    return _GROUPS.get(key, parts[-1] if parts[-1].isidentifier() else None)


def _keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of a model, those of its own level first."""
    nested: list[tuple[str, type[BaseModel]]] = []
    for name, field in model.model_fields.items():
        kinds: tuple[Any, ...] = (field.annotation, *get_args(field.annotation))
        models = [k for k in kinds if isinstance(k, type) and issubclass(k, BaseModel)]
        if models:
            nested.append((name, models[0]))
        else:
            yield f"{prefix}{name}"
    for name, inner in nested:
        yield from _keys(inner, f"{prefix}{name}.")
