"""Whether an adapter belongs to a base, told from names and shapes before anything is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from expo_ray.checkpoints.computed.adapters import MERGE_HINT, OTHER_BASE_HINT, Adapter, is_square
from expo_ray.checkpoints.formats.header import TensorRef
from expo_ray.errors import CheckpointError

_EMBEDDINGS = (
    *("embed_tokens.weight", "wte.weight", "word_embeddings.weight", "embed_in.weight"),
    *("shared.weight", "tok_embeddings.weight", "embeddings.weight", "embedding.weight"),
)
_HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")


def check_against_base(
    adapter: Adapter, base: Mapping[str, TensorRef], config: Mapping[str, Any]
) -> None:
    """Let adapters pass that change tensors of this base, each in a way that can be told.

    Raises:
        CheckpointError: A module is not in the base, has another shape, or is tied.
    """
    uri = adapter.storage.uri
    changed = [f"{module}.weight" for module in adapter.factors]
    for name in (*changed, *adapter.replaced):
        if name not in base:
            raise CheckpointError(
                "the adapter changes a tensor that the base does not have",
                where=f"{uri}, tensor {name!r}",
                hint=OTHER_BASE_HINT,
            )
    for name, ref in adapter.replaced.items():
        if ref.shape != base[name].shape:
            raise CheckpointError(
                "the adapter replaces a tensor by one of another shape",
                where=f"{uri}, tensor {name!r}",
                got=list(ref.shape),
                expected=list(base[name].shape),
                hint=MERGE_HINT,
            )
    _refuse_tied((*changed, *adapter.replaced), base, config, uri)
    _refuse_ambiguous(adapter, [base[name] for name in changed])


def _refuse_tied(
    names: Iterable[str], base: Mapping[str, TensorRef], config: Mapping[str, Any], uri: str
) -> None:
    """A change of one side of a tie would silently become one of both, or be lost."""
    sections = (config, config.get("text_config"))
    is_tied = any(isinstance(s, Mapping) and s.get("tie_word_embeddings") for s in sections)
    has_head = any(name.endswith(_HEADS) for name in base)
    for name in names:
        touched = (*_EMBEDDINGS, *_HEADS) if is_tied else () if has_head else _EMBEDDINGS
        if name.endswith(touched):
            raise CheckpointError(
                "the adapter changes an embedding or a head, and the two are tied",
                where=f"{uri}, tensor {name!r}",
                hint=MERGE_HINT,
            )


def _refuse_ambiguous(adapter: Adapter, refs: Iterable[TensorRef]) -> None:
    """The flag decides for square matrices: what can be told from shapes must agree with it."""
    changes = [(ref, adapter.change_of(ref)) for ref in refs]
    linear = [(ref, c) for ref, c in changes if c and "embedding" not in c.a.name]
    told = {c.is_transposed for ref, c in linear if not is_square(ref)}
    square = [ref.name for ref, _ in linear if is_square(ref)]
    if square and told - {bool(adapter.config.get("fan_in_fan_out"))}:
        raise CheckpointError(
            "fan_in_fan_out of the adapter disagrees with its shapes, and a square matrix could be "
            "meant either way",
            where=f"{adapter.storage.uri}, tensor {square[0]!r}",
            hint=MERGE_HINT,
        )
