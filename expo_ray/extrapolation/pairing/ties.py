"""Tied weights: one matrix under two names, of which a checkpoint may store only one.

A name that only one side has is fine if that side stores it as a copy of another tensor which
both sides have, or if the config of the side without it says that the head is the embedding.
Where a checkpoint stores both, they must come out as one: transformers loads two different tensors
under a config that ties them as untied.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping

from expo_ray.checkpoints.checkpoint import Checkpoint
from expo_ray.checkpoints.formats.header import TensorRef
from expo_ray.errors import CheckpointError
from expo_ray.extrapolation.pairing.modules import layer_index

HEADS = ("lm_head.weight", "embed_out.weight", "output.weight")
EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "word_embeddings.weight",
    "embed_in.weight",
    "shared.weight",
    "embeddings.weight",
    "embedding.weight",
    "tok_embeddings.weight",
)
_PIECE_BYTES = 1024 * 1024
# Two matrices that differ show it in their first rows.
_SAMPLE_BYTES = 64 * 1024


def tied_partner(
    present: Checkpoint, name: str, *, other: Checkpoint, is_left_out: bool = False
) -> str | None:
    """Return the tensor that stands for `name` in `other`, where `name` is not stored.

    Args:
        present: The side that stores the tensor.
        name: The tensor.
        other: The side without it.
        is_left_out: The output has no such name either. A head of its own would be lost then,
            whatever the config of the other side says of its own head.

    Returns:
        The name of the stored tensor it is tied to, or None where it is simply missing.
    """
    ref = present.tensors[name]
    twins = [
        other_ref.name
        for other_ref in other.tensors.values()
        if other_ref.name in present.tensors
        and len(other_ref.shape) == len(ref.shape) > 1
        and other_ref.shape[1:] == ref.shape[1:]
        and present.tensors[other_ref.name].shape == ref.shape
    ]
    is_head = name.endswith(HEADS) and _is_tied(other)
    if is_head and (_is_tied(present) or not is_left_out):
        for twin in twins:
            if twin.endswith(EMBEDDINGS):
                return twin
    for twin in twins:
        if present.tensors[twin].dtype == ref.dtype and same_bytes(
            present, ref, present, present.tensors[twin]
        ):
            return twin
    return None


def same_bytes(
    first: Checkpoint,
    first_ref: TensorRef,
    second: Checkpoint,
    second_ref: TensorRef,
    *,
    limit_bytes: int | None = None,
) -> bool:
    """Compare two stored tensors, stopping at the first difference.

    Args:
        first: Checkpoint of the first.
        first_ref: The first tensor.
        second: Checkpoint of the second.
        second_ref: The second tensor.
        limit_bytes: Compare only so many leading bytes.

    Raises:
        CheckpointError: A file cannot be read.
    """
    if first_ref.num_bytes != second_ref.num_bytes:
        return False
    total = min(first_ref.num_bytes, limit_bytes or first_ref.num_bytes)
    buffers = (bytearray(min(total, _PIECE_BYTES)), bytearray(min(total, _PIECE_BYTES)))
    with (
        first.storage.open(first_ref.file) as one,
        second.storage.open(second_ref.file) as two,
    ):
        for start in range(0, total, _PIECE_BYTES):
            length = min(_PIECE_BYTES, total - start)
            views = [memoryview(buffer)[:length] for buffer in buffers]
            try:
                one.read_into(first_ref.offset_bytes + start, views[0])
                two.read_into(second_ref.offset_bytes + start, views[1])
            except (EOFError, OSError) as error:
                raise CheckpointError(
                    "the weights cannot be read", where=first_ref.name, got=error
                ) from error
            if views[0] != views[1]:
                return False
    return True


def is_named(name: str, ends: Iterable[str]) -> bool:
    """Tell whether the last parts of a name are one of these."""
    return f".{name}".endswith(tuple(f".{end}" for end in ends))


def stored_ties(checkpoint: Checkpoint) -> dict[str, str]:
    """Return the names that stand for one matrix, each with the first of them.

    That is a storage that files of torch name twice, or what the config says of head and embedding
    where the first rows agree.

    Raises:
        CheckpointError: A file cannot be read.
    """
    places: dict[object, list[TensorRef]] = defaultdict(list)
    tables: dict[object, list[TensorRef]] = defaultdict(list)
    for ref in checkpoint.tensors.values():
        if ref.num_bytes:
            places[(ref.file, ref.offset_bytes, ref.dtype, ref.shape)].append(ref)
        if is_named(ref.name, (*HEADS, *EMBEDDINGS)) and layer_index(ref.name) is None:
            tables[(ref.dtype, ref.shape)].append(ref)
    groups = [group for group in places.values() if len(group) > 1]
    for refs in tables.values() if _is_tied(checkpoint) else ():
        same = [ref for ref in refs if is_one_matrix(checkpoint, refs[0], ref)]
        if len(same) > 1:
            groups.append(same)
    first_names: dict[str, str] = {}
    for group in groups:
        names = {first_names.get(ref.name, ref.name) for ref in group}
        members = {ref.name for ref in group} | {n for n, f in first_names.items() if f in names}
        first_names.update(dict.fromkeys(members, min(members)))
    return first_names


def is_one_matrix(checkpoint: Checkpoint, first: TensorRef, second: TensorRef) -> bool:
    """Tell whether two tensors of a checkpoint are the same, by their first rows.

    Raises:
        CheckpointError: A file cannot be read.
    """
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return False
    is_one = (first.file, first.offset_bytes) == (second.file, second.offset_bytes)
    return is_one or same_bytes(checkpoint, first, checkpoint, second, limit_bytes=_SAMPLE_BYTES)


def _is_tied(checkpoint: Checkpoint) -> bool:
    config = checkpoint.config
    inner = config.get("text_config")
    sections = [config, inner] if isinstance(inner, Mapping) else [config]
    return any(section.get("tie_word_embeddings") is True for section in sections)
