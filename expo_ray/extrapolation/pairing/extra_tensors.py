"""Tensors that not all sides have: buffers that loaders compute anew, and what the caller names.

A buffer is no weight: it follows from the config. Where all sides have one, the formula holds for
it as for every tensor, unless their shapes or kinds of values differ.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from expo_ray.checkpoints.checkpoint import Checkpoint
from expo_ray.checkpoints.formats.header import FLOAT_DTYPES, TensorRef
from expo_ray.errors import ConfigError, argument, first_names

FLAG = argument("extra_tensors")
_COPY = "copy:"
# Last parts of names that transformers computes from the config or reads past.
_BUFFERS = frozenset(
    {
        *("inv_freq", "original_inv_freq", "cos_cached", "sin_cached", "freqs_cis"),
        *("position_ids", "token_type_ids", "relative_position_index", "relative_coords_table"),
        *("masked_bias", "causal_mask", "_float_tensor", "num_batches_tracked"),
    }
)
# Of GPT-2 and its kin; elsewhere such a name is that of a weight, with another shape.
_MASKS = frozenset({"bias", "mask"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Extras:
    """What is not extrapolated because not all sides have it."""

    copied: frozenset[str]
    """As the base has them."""
    left_out: frozenset[str]
    """The base does not have them."""
    notes: tuple[str, ...]


def parse_extra_tensors(specs: Sequence[str]) -> tuple[str, ...]:
    """Return the globs of `copy:PATTERN`.

    Raises:
        ConfigError: One has another form.
    """
    for spec in specs:
        if not spec.startswith(_COPY) or spec == _COPY:
            raise ConfigError("unknown value", where=FLAG, got=spec, expected="copy:PATTERN")
    return tuple(spec.removeprefix(_COPY) for spec in specs)


def is_buffer(ref: TensorRef) -> bool:
    """Tell whether loaders compute a tensor anew, or read past it."""
    last = ref.name.rpartition(".")[2]
    is_square = len(ref.shape) == 4 and ref.shape[:2] == (1, 1) and ref.shape[2] == ref.shape[3] > 1
    return last in _BUFFERS or (last in _MASKS and is_square)


def find_extras(
    others: Checkpoint, base: Checkpoint, patterns: Sequence[str], *, sides: tuple[str, str]
) -> Extras:
    """Say what is copied from a base, and what is left out that it does not have.

    Args:
        others: The side that is compared with the base.
        base: The side whose names the output has.
        patterns: Of tensors that the caller lets pass though one side lacks them.
        sides: The roles of the two, for the notes.
    """
    one_sided = others.tensors.keys() ^ base.tensors.keys()
    unlike = {
        name
        for name, ref in base.tensors.items()
        if name in others.tensors and _is_unlike(others.tensors[name], ref)
    }
    sided = ((name, ref) for c in (others, base) for name, ref in c.tensors.items())
    buffers = {name for name, ref in sided if name in one_sided | unlike and is_buffer(ref)}
    named = {name for name in one_sided if _matches(name, patterns)} - buffers
    other, first = sides
    groups = (
        (buffers & unlike, "copied from {first}, as {other} has them in another form"),
        (buffers & one_sided & base.tensors.keys(), "copied from {first}, which alone has them"),
        (buffers & one_sided & others.tensors.keys(), "left out, as only {other} has them"),
    )
    asked = (
        (named & base.tensors.keys(), "copied from {first}, which alone has them"),
        (named & others.tensors.keys(), "left out, as only {other} has them"),
    )
    return Extras(
        copied=frozenset((buffers | named) & base.tensors.keys()),
        left_out=frozenset((buffers | named) - base.tensors.keys()),
        notes=tuple(
            f"{what} {text.format(first=first, other=other)}: {first_names(sorted(names))}"
            for what, rows in (("buffers that loaders compute anew,", groups), ("as asked,", asked))
            for names, text in rows
            if names
        ),
    )


def _is_unlike(one: TensorRef, other: TensorRef) -> bool:
    """Whether no formula holds between two tensors of one name."""
    kinds = {ref.dtype if ref.dtype not in FLOAT_DTYPES else "float" for ref in (one, other)}
    return one.shape != other.shape or len(kinds) > 1


def refuse_unused(patterns: Sequence[str], sides: Iterable[Checkpoint]) -> None:
    """Let patterns pass that each match a tensor which some side lacks.

    Raises:
        ConfigError: One matches none.
    """
    names = [frozenset(side.tensors) for side in sides]
    one_sided = frozenset.union(*names) - frozenset.intersection(*names)
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in one_sided):
            raise ConfigError(
                "a pattern matches no tensor that one side lacks",
                where=FLAG,
                got=f"{_COPY}{pattern}",
                hint="leave it out: tensors that all sides have are extrapolated",
            )


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
