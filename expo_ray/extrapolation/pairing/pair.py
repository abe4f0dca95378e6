"""Whether two checkpoints belong together, decided from headers before anything is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from expo_ray.checkpoints.checkpoint import Checkpoint
from expo_ray.checkpoints.formats.header import FLOAT_DTYPES, INTEGER_DTYPES, TensorRef
from expo_ray.checkpoints.opening import is_same_address
from expo_ray.checkpoints.quantization import refuse_quantized
from expo_ray.checkpoints.storages.storage import split_address
from expo_ray.errors import CheckpointError, ConfigError, PairError, argument
from expo_ray.extrapolation.pairing.extra_tensors import FLAG, find_extras
from expo_ray.extrapolation.pairing.hints import naming_hint, refuse_empty_weights, shape_hint
from expo_ray.extrapolation.pairing.tensor_pair import Pair, TensorPair
from expo_ray.extrapolation.pairing.ties import is_one_matrix, same_bytes, stored_ties, tied_partner
from expo_ray.extrapolation.pairing.token_tables import compare_tokenizers, were_compared
from expo_ray.extrapolation.pairing.vocabulary import (
    VOCAB_POLICIES,
    RowRun,
    Vocabulary,
    match_vocabularies,
    refused_sizes,
    unplaced_tokens,
)

# Samples of all tensors first: equal tensors of frozen layers are not read whole then.
_SAMPLE_BYTES = 64 * 1024
_PARENT_HINT = "initial must be the model that aligned was trained from"
OUTPUT_DTYPES = {"auto": None, "bfloat16": "BF16", "float16": "F16", "float32": "F32"}

# Shapes alone do not show these: the same matrices with other heads are another function.
_STRUCTURE_KEYS = (
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "num_experts_per_tok",
    "hidden_act",
    "hidden_activation",
)


def match_pair(
    initial: Checkpoint,
    aligned: Checkpoint,
    *,
    vocab_policy: str = "refuse",
    output_dtype: str = "auto",
    extra_tensors: Sequence[str] = (),
) -> Pair:
    """Match every tensor of aligned with its counterpart.

    Args:
        initial: The model before alignment.
        aligned: The model after it.
        vocab_policy: What to do with vocabularies that differ: `refuse`; `common-rows`
            extrapolates the rows of tokens that both have and copies the rest from aligned, see
            `match_vocabularies`; `copy-aligned` copies these tensors whole.
        output_dtype: `auto` keeps each aligned tensor's own, FP8 with block scales included.
        extra_tensors: Globs of tensors that one side may lack: copied from aligned, left out
            where only initial has them. Buffers that loaders compute anew need none.

    Raises:
        CheckpointError: Weights are quantized or of a dtype that has no arithmetic.
        ConfigError: An option is unknown.
        PairError: The two do not belong together.
    """
    _check_option("vocab_policy", vocab_policy, VOCAB_POLICIES)
    _check_option("output_dtype", output_dtype, tuple(OUTPUT_DTYPES))
    for side, checkpoint in (("initial", initial), ("aligned", aligned)):
        refuse_quantized(checkpoint)
        refuse_empty_weights(checkpoint, side=side)
    check_architecture(initial.config, aligned.config, sides=("initial", "aligned"))
    notes = _adapter_notes(initial, aligned)
    if not were_compared(initial, aligned):
        notes.append("the tokenizers are of two kinds and were not compared: rows go by their ids")
    extras = find_extras(initial, aligned, extra_tensors, sides=("initial", "aligned"))
    notes += extras.notes
    for name in initial.tensors:
        if name not in aligned.tensors and name not in extras.left_out:
            partner = tied_partner(initial, name, other=aligned, is_left_out=True)
            if partner is None:
                raise missing_tensor(name, present=initial, missing=aligned, side="aligned")
            notes.append(f"{name} of initial is tied to {partner} and absent from aligned")
    vocabulary = match_vocabularies(initial, aligned, vocab_policy)
    pairs = [
        copied_tensor(ref, aligned, OUTPUT_DTYPES[output_dtype])
        if ref.name in extras.copied
        else _match_tensor(initial, aligned, ref, vocabulary, OUTPUT_DTYPES[output_dtype], notes)
        for ref in aligned.tensors.values()
    ]
    if vocabulary is not None and not any(pair.runs for pair in pairs):
        difference = compare_tokenizers(initial, aligned)
        if difference is not None and difference.contradicts:
            raise unplaced_tokens(initial, aligned)
        vocabulary = None
    if not any(pair.num_extrapolated for pair in pairs):
        raise PairError("the pair has no floating-point tensor to extrapolate", where=aligned.uri)
    return Pair(
        initial=initial,
        aligned=aligned,
        tensors=mark_ties(pairs, aligned, {"initial": initial}),
        notes=tuple(notes),
        vocabulary=vocabulary,
        left_out=tuple(sorted(extras.left_out)),
    )


def copied_tensor(ref: TensorRef, base: Checkpoint, output_dtype: str | None) -> TensorPair:
    """Return a tensor that is copied from the base whole, in its own dtype for None.

    Raises:
        CheckpointError: Its dtype cannot be written.
        PairError: It is stored in FP8 blocks, which only the formula makes.
    """
    check_dtypes(ref, ref, sides=("it", "it"))
    if output_dtype is None and ref.name in base.block_formats:
        raise _quantized_copy(ref, "tensors cannot be copied in FP8 blocks")
    auto_dtype = base.auto_dtypes.get(ref.name, ref.dtype)
    return TensorPair(
        aligned=ref,
        initial=None,
        num_extrapolated=0,
        output_dtype=(output_dtype or auto_dtype) if ref.dtype in FLOAT_DTYPES else ref.dtype,
    )


def mark_ties(
    tensors: Sequence[TensorPair], base: Checkpoint, inputs: Mapping[str, Checkpoint]
) -> tuple[TensorPair, ...]:
    """Return the tensors with what is one matrix in the base marked as such.

    Args:
        tensors: All tensors of the base.
        base: What delta is added to.
        inputs: The other sides, by the name of their role.

    Raises:
        CheckpointError: A file cannot be read.
        PairError: Another side has two matrices there: the output would not be tied.
    """
    ties = stored_ties(base)
    by_name = {pair.name: pair for pair in tensors}
    for name, first in ties.items():
        are_copied = {not by_name[n].num_extrapolated for n in (first, name)}
        if len(are_copied) > 1:
            raise PairError(
                "a tensor that is to be copied is one matrix with one that is extrapolated",
                where=f"tensors {first!r} and {name!r}",
                hint=f"leave it out of {FLAG}: tied tensors find their counterpart",
            )
        if are_copied == {True}:
            continue  # from the base alone, where they are one
        for side, checkpoint in inputs.items():
            refs = [getattr(by_name[n], side) for n in (first, name)]
            if None not in refs and not is_one_matrix(checkpoint, *refs):
                raise PairError(
                    f"two tensors are one in the output, and are not in {side}",
                    where=f"tensors {first!r} and {name!r}",
                    got=f"tied in {base.uri}, two matrices in {checkpoint.uri}",
                    expected="the same tie on all sides",
                    hint=_PARENT_HINT,
                )
    return tuple(
        replace(pair, tied_to=ties[pair.name]) if pair.name in ties else pair for pair in tensors
    )


def refuse_same_checkpoint(initial: Checkpoint, aligned: Checkpoint) -> None:
    """Let two checkpoints pass that do not lie at one address; nothing is read.

    Raises:
        PairError: They are one.
    """
    if is_same_address(initial.uri, aligned.uri):
        raise PairError(
            "initial and aligned are the same checkpoint: there is nothing to extrapolate",
            where=f"{initial.uri} and {aligned.uri}",
            hint="check that both paths are the ones you meant",
        )


def refuse_equal_weights(pair: Pair) -> None:
    """Let pairs pass that differ; the first differing sample ends the search.

    Raises:
        PairError: Both sides hold the same weights.
    """
    moved = [p for p in pair.tensors if p.initial is not None]
    for limit_bytes in (_SAMPLE_BYTES, None):
        for p in moved:
            if p.initial is None or p.initial.dtype != p.aligned.dtype:
                return
            if not same_bytes(
                pair.initial, p.initial, pair.aligned, p.aligned, limit_bytes=limit_bytes
            ):
                return
    raise PairError(
        "initial and aligned hold the same weights: there is nothing to extrapolate",
        where=f"{pair.initial.uri} and {pair.aligned.uri}",
        hint="check that both paths are the ones you meant",
    )


def _adapter_notes(initial: Checkpoint, aligned: Checkpoint) -> list[str]:
    bases = {}
    for side, checkpoint in (("initial", initial), ("aligned", aligned)):
        base = split_address(checkpoint.uri)[1]
        if base:
            bases[side] = base
    if len(set(bases.values())) > 1:
        raise PairError(
            "the adapters of the two sides belong to two bases",
            where=f"{initial.uri} and {aligned.uri}",
            got=f"initial {bases['initial']}, aligned {bases['aligned']}",
            expected="one base",
        )
    return [
        f"{side} is a LoRA adapter on {base}, summed in float32" for side, base in bases.items()
    ]


def _match_tensor(
    initial: Checkpoint,
    aligned: Checkpoint,
    ref: TensorRef,
    vocabulary: Vocabulary | None,
    output_dtype: str | None,
    notes: list[str],
) -> TensorPair:
    partner = initial.tensors.get(ref.name)
    if partner is None:
        tied = tied_partner(aligned, ref.name, other=initial)
        if tied is None:
            raise missing_tensor(ref.name, present=aligned, missing=initial, side="initial")
        partner = initial.tensors[tied]
        notes.append(f"{ref.name} is tied to {tied} in initial")
    check_dtypes(partner, ref, sides=("initial", "aligned"))
    is_float = ref.dtype in FLOAT_DTYPES
    num_extrapolated = ref.num_elements if is_float else 0
    blocks = aligned.block_formats.get(ref.name) if output_dtype is None else None
    runs: tuple[RowRun, ...] = ()
    matching = None
    if is_float and vocabulary:
        matching = vocabulary.matching_of(ref.name, partner.shape, ref.shape)
    if matching is not None:
        if blocks is not None:
            raise _quantized_copy(ref, "rows of tokens cannot be copied inside FP8 blocks")
        runs = matching.runs
        row = ref.num_elements // max(1, ref.shape[0])
        num_extrapolated = matching.num_extrapolated * row
        notes.append(
            f"{ref.name}: {matching.num_extrapolated} of {ref.shape[0]} rows extrapolated "
            f"({matching.num_moved} from another row of initial), rest copied"
        )
    elif partner.shape != ref.shape:
        raise _two_shapes(initial, aligned, ref, partner)
    auto_dtype = blocks.code_dtype if blocks else aligned.auto_dtypes.get(ref.name, ref.dtype)
    return TensorPair(
        aligned=ref,
        initial=partner if num_extrapolated else None,
        num_extrapolated=num_extrapolated,
        output_dtype=(output_dtype or auto_dtype) if is_float else ref.dtype,
        runs=runs,
        blocks=blocks,
    )


def check_dtypes(first: TensorRef, second: TensorRef, *, sides: tuple[str, str]) -> None:
    """Let two tensors pass that the formula or a copy covers alike.

    Raises:
        CheckpointError: A dtype has no arithmetic.
        PairError: One is floating-point, the other is not.
    """
    for side in (second, first):
        if side.dtype not in FLOAT_DTYPES | INTEGER_DTYPES:
            raise CheckpointError(
                "tensors of this dtype cannot be extrapolated",
                where=f"{side.file}, tensor {side.name!r}",
                got=side.dtype,
                expected="F16, BF16, F32, F64, or an integer dtype that is copied",
            )
    if (first.dtype in FLOAT_DTYPES) != (second.dtype in FLOAT_DTYPES):
        raise PairError(
            "a tensor is floating-point on one side and integer on the other",
            where=f"tensor {second.name!r}",
            got=f"{sides[0]} {first.dtype}, {sides[1]} {second.dtype}",
            expected="the same kind",
        )


def _two_shapes(
    initial: Checkpoint, aligned: Checkpoint, ref: TensorRef, partner: TensorRef
) -> PairError:
    got = f"initial {list(partner.shape)}, aligned {list(ref.shape)}"
    if partner.shape and ref.shape and partner.shape[1:] == ref.shape[1:]:
        sizes = (partner.shape[0], ref.shape[0])
        error = refused_sizes(initial, aligned, tensor=ref.name, sizes=sizes, shapes=got)
        if error is not None:
            return error
    return PairError(
        "a tensor has two shapes",
        where=f"tensor {ref.name!r}",
        got=got,
        expected="the same shape on both sides",
        hint=shape_hint(partner, ref) or _PARENT_HINT,
    )


def _quantized_copy(ref: TensorRef, message: str) -> PairError:
    return PairError(
        message,
        where=f"tensor {ref.name!r}",
        got="FP8 codes with block scales, which only one side has wholly",
        expected="plain weights",
        hint=f"give {argument('output_dtype', 'bfloat16')}: the blocks are read and plain "
        "weights are written",
    )


def check_architecture(
    first_config: Mapping[str, Any], second_config: Mapping[str, Any], *, sides: tuple[str, str]
) -> None:
    """Let two configs pass that describe one architecture, as far as they say.

    Raises:
        PairError: A setting that decides what the weights mean differs.
    """
    for key in ("model_type", "architectures", *_STRUCTURE_KEYS):
        first, second = _setting(first_config, key), _setting(second_config, key)
        if first is not None and second is not None and first != second:
            raise PairError(
                "the two models have different architectures",
                where=f"config.json, {key}",
                got=f"{sides[0]} {first}, {sides[1]} {second}",
                expected="the same on both sides",
                hint=_PARENT_HINT,
            )


def _setting(config: Mapping[str, Any], key: str) -> Any:
    if config.get(key) is not None:
        return config[key]
    text_config = config.get("text_config")
    return text_config.get(key) if isinstance(text_config, Mapping) else None


def missing_tensor(name: str, *, present: Checkpoint, missing: Checkpoint, side: str) -> PairError:
    """Return the error for a tensor that one side lacks."""
    return PairError(
        f"a tensor is missing from {side}",
        where=f"tensor {name!r}",
        got=f"only in {present.uri}",
        expected=f"in {missing.uri} too",
        hint=naming_hint(name, present=present, missing=missing)
        or f"{_PARENT_HINT}; where it is no weight of the model, "
        f"{argument('extra_tensors', 'copy:PATTERN')} lets it pass",
    )


def _check_option(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ConfigError(
            "unknown value", where=argument(name), got=value, expected=", ".join(choices)
        )
