"""The three-model form: delta of a pair added to another checkpoint of the family.

    output = (base.float() + alpha * (aligned.float() - initial.float())).to(output_dtype)

Without `--onto` the base is aligned itself. Names, shapes, dtypes, ties, config and sidecars of the
output are those of the base. A delta between models says nothing of tokens or shapes that the base
lacks, so all three must agree; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from expo_ray.checkpoints.checkpoint import Checkpoint
from expo_ray.checkpoints.formats.header import FLOAT_DTYPES, TensorRef
from expo_ray.checkpoints.quantization import refuse_quantized
from expo_ray.errors import PairError, argument
from expo_ray.extrapolation.pairing.extra_tensors import find_extras
from expo_ray.extrapolation.pairing.hints import refuse_empty_weights
from expo_ray.extrapolation.pairing.pair import (
    OUTPUT_DTYPES,
    check_architecture,
    check_dtypes,
    copied_tensor,
    mark_ties,
    missing_tensor,
)
from expo_ray.extrapolation.pairing.tensor_pair import Pair, TensorPair
from expo_ray.extrapolation.pairing.ties import tied_partner
from expo_ray.extrapolation.pairing.vocabulary import refuse_other_tokens

FLAG = argument("onto")
_HINT = "the base must be a model of the same family, with the same tokens"


def add_onto(
    pair: Pair,
    base: Checkpoint,
    *,
    output_dtype: str = "auto",
    extra_tensors: Sequence[str] = (),
) -> Pair:
    """Return the pair with every tensor laid onto its counterpart in another checkpoint.

    Args:
        pair: The validated pair, whose delta is added.
        base: What it is added to.
        output_dtype: `auto` keeps each base tensor's own.
        extra_tensors: As for `match_pair`.

    Raises:
        CheckpointError: The base is quantized or of a dtype that has no arithmetic.
        PairError: The base does not belong to the pair.
    """
    refuse_quantized(base)
    refuse_empty_weights(base, side="the base")
    check_architecture(pair.aligned.config, base.config, sides=("aligned", "base"))
    refuse_other_tokens(base, pair.aligned, sides=("base", "aligned"), hint=_HINT)
    if any(p.runs for p in pair.tensors) or pair.vocabulary is not None:
        raise PairError(
            "the vocabularies of initial and aligned differ",
            where=FLAG,
            expected="one vocabulary in all three models",
        )
    if base.block_formats and output_dtype == "auto":
        raise PairError(
            "FP8 blocks cannot be written under a base of their own",
            where=FLAG,
            got="FP8 codes with block scales",
            hint=f"give {argument('output_dtype', 'bfloat16')}: the blocks are read and plain "
            "weights are written",
        )
    extras = find_extras(pair.aligned, base, extra_tensors, sides=("aligned", "base"))
    notes = [*pair.notes, *extras.notes]
    by_name = {p.name: p for p in pair.tensors}
    for name in by_name:
        if name not in base.tensors and name not in extras.left_out:
            partner = tied_partner(pair.aligned, name, other=base, is_left_out=True)
            if partner is None:
                raise missing_tensor(name, present=pair.aligned, missing=base, side="base")
            notes.append(f"{name} of aligned is tied to {partner} and absent from base")
    tensors = []
    for ref in base.tensors.values():
        if ref.name in extras.copied:
            copied = copied_tensor(ref, base, OUTPUT_DTYPES[output_dtype])
            tensors.append(replace(copied, onto=ref))
            continue
        found = by_name.get(ref.name)
        if found is None:
            partner = tied_partner(base, ref.name, other=pair.aligned)
            if partner is None:
                raise missing_tensor(ref.name, present=base, missing=pair.aligned, side="aligned")
            found = by_name[partner]
            notes.append(f"{ref.name} is tied to {partner} in aligned")
        tensors.append(_lay(found, ref, base, OUTPUT_DTYPES[output_dtype]))
    marked = mark_ties(tensors, base, {"initial": pair.initial, "aligned": pair.aligned})
    left_out = tuple(sorted({*pair.left_out, *extras.left_out} - base.tensors.keys()))
    return replace(pair, onto=base, tensors=marked, notes=tuple(notes), left_out=left_out)


def _lay(pair: TensorPair, ref: TensorRef, base: Checkpoint, dtype: str | None) -> TensorPair:
    check_dtypes(pair.aligned, ref, sides=("aligned", "base"))
    if pair.aligned.shape != ref.shape:
        raise PairError(
            "a tensor has two shapes",
            where=f"tensor {ref.name!r}",
            got=f"base {list(ref.shape)}, aligned {list(pair.aligned.shape)}",
            expected="the same shape in all three models",
            hint=_HINT,
        )
    is_float = ref.dtype in FLOAT_DTYPES
    auto = base.auto_dtypes.get(ref.name, ref.dtype)
    return replace(
        pair, onto=ref, output_dtype=(dtype or auto) if is_float else ref.dtype, blocks=None
    )
