"""The plan: which output file holds which tensor, decided once, the same for every run."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from expo_ray.checkpoints.checkpoint import Checkpoint
from expo_ray.checkpoints.formats.header import build_header, tensor_bytes
from expo_ray.checkpoints.formats.layouts import SINGLE_NAME
from expo_ray.checkpoints.opening import open_aligned, open_checkpoint, without_block_scales
from expo_ray.checkpoints.storages.storage import FileFacts
from expo_ray.errors import ConfigError, argument
from expo_ray.extrapolation.arithmetic.requantization_costs import REQUANTIZATION
from expo_ray.extrapolation.arithmetic.transforms import Transform, parse_transforms
from expo_ray.extrapolation.pairing.extra_tensors import parse_extra_tensors, refuse_unused
from expo_ray.extrapolation.pairing.onto import add_onto
from expo_ray.extrapolation.pairing.pair import match_pair
from expo_ray.extrapolation.pairing.tensor_pair import Pair, TensorPair
from expo_ray.extrapolation.planning.alpha import round_alpha
from expo_ray.extrapolation.planning.path import FITTED, FittedPath

ONTO_FORMULA = "(base.float() + alpha * (aligned.float() - initial.float())).to(output_dtype)"
FORMULA = "(aligned.float() + alpha * (aligned.float() - initial.float())).to(output_dtype)"
_DELTA = "(aligned.float() - initial.float())"
DIRECTION = "sum_i(weight_i * (checkpoint_i.float() - initial.float()))"
DEFAULT_SHARD_SIZE = "5GB"
PLAN_VERSION = 1

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True, kw_only=True)
class OutputShard:
    """One output file. Sums are cached: plans of 90,000 tensors ask for them again and again."""

    name: str
    tensors: tuple[TensorPair, ...]
    """In the order of their bytes."""

    @property
    def header(self) -> bytes:
        """The header of the file, the same for every alpha."""
        return build_header([output for p in self.tensors for output in p.outputs])

    @cached_property
    def file_bytes(self) -> int:
        """Bytes of the file, header included."""
        return self.data_bytes + len(self.header)

    @cached_property
    def data_bytes(self) -> int:
        """Bytes of the tensors, without the header."""
        return sum(p.output_bytes for p in self.tensors)

    @cached_property
    def input_bytes(self) -> int:
        """Bytes that one pass over the inputs reads."""
        return sum(used_bytes(p) for p in self.tensors)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What one extrapolation does, whatever the alphas and the number of workers.

    What looks at every tensor is cached: each of many alphas asks for it.
    """

    pair: Pair
    shards: tuple[OutputShard, ...]
    output_dtype: str
    max_shard_bytes: int
    vocab_policy: str
    transforms: tuple[Transform, ...] = ()
    extra_tensors: tuple[str, ...] = ()
    """`copy:PATTERN`, of tensors that one side may lack."""
    path: FittedPath | None = None
    """Of a trajectory: how its checkpoints make what takes the place of delta."""

    @property
    def formula(self) -> str:
        """What is computed, in the words of torch."""
        formula = FORMULA if self.pair.onto is None else ONTO_FORMULA
        if self.path is None or self.path.is_pair:
            return formula
        return formula.replace(_DELTA, DIRECTION)

    @property
    def data_bytes(self) -> int:
        """Bytes of all output tensors, for one alpha."""
        return sum(shard.data_bytes for shard in self.shards)

    @property
    def file_bytes(self) -> int:
        """Bytes of all output weight files, for one alpha."""
        return sum(shard.file_bytes for shard in self.shards)

    @property
    def input_bytes(self) -> int:
        """Bytes that one pass over the inputs reads."""
        return sum(shard.input_bytes for shard in self.shards)

    def transform_bytes(self, tensors: Sequence[TensorPair]) -> int:
        """Return the bytes that the passes of the transforms read in addition."""
        total = 0
        if not self.transforms:
            return total
        for pair in tensors:
            item_bytes = 8 if computes_float64(pair) else 4
            passes = sum(t.num_passes(pair, item_bytes) for t in self.transforms)
            aligned_bytes = tensor_bytes(pair.aligned.dtype, (pair.num_extrapolated,))
            between = sum(ref.input_bytes(pair.num_extrapolated) for ref in pair.between)
            total += passes * (aligned_bytes + used_initial_bytes(pair) + between)
        return total

    @property
    def gram_bytes(self) -> int:
        """Bytes that the pass for Gram matrices reads, where the fit of a trajectory has one."""
        if self.path is None or not self.path.has_gram_pass:
            return 0
        refs = (ref for pair in self.pair.tensors for ref in pair.path)
        return sum(ref.input_bytes(ref.num_elements) for ref in refs)

    @cached_property
    def is_requantized(self) -> bool:
        """Whether some tensors are written as FP8 codes with block scales."""
        return any(p.blocks is not None for p in self.pair.tensors)

    @cached_property
    def has_float64(self) -> bool:
        """Whether some tensor is computed in float64, where alpha is not rounded."""
        return any(computes_float64(p) for p in self.pair.tensors)


def build_plan(
    initial: str | Path | Checkpoint,
    aligned: str | Path | Checkpoint,
    *,
    output_dtype: str = "auto",
    max_shard_size: str | int = DEFAULT_SHARD_SIZE,
    vocab_policy: str = "refuse",
    transforms: Sequence[str] = (),
    onto: str | Path | Checkpoint | None = None,
    extra_tensors: Sequence[str] = (),
) -> Plan:
    """Read the headers of all sides and lay out the output.

    Raises:
        CheckpointError: A side is missing, malformed or quantized.
        PairError: The two do not belong together.
        ConfigError: An option is unknown, or both sides are one folder.
    """
    max_shard_bytes = parse_size(max_shard_size)
    patterns = parse_extra_tensors(extra_tensors)
    first = initial if isinstance(initial, Checkpoint) else open_checkpoint(initial)
    second = aligned if isinstance(aligned, Checkpoint) else open_aligned(aligned, first)
    first, second = without_block_scales(first), without_block_scales(second)
    pair = match_pair(
        first,
        second,
        vocab_policy=vocab_policy,
        output_dtype=output_dtype,
        extra_tensors=patterns,
    )
    if onto is not None:
        third = onto if isinstance(onto, Checkpoint) else open_checkpoint(onto)
        pair = add_onto(
            pair,
            without_block_scales(third),
            output_dtype=output_dtype,
            extra_tensors=patterns,
        )
    refuse_unused(patterns, pair.sides.values())
    return Plan(
        pair=pair,
        shards=lay_out(pair.tensors, max_shard_bytes),
        output_dtype=output_dtype,
        max_shard_bytes=max_shard_bytes,
        vocab_policy=vocab_policy,
        transforms=parse_transforms(transforms),
        extra_tensors=tuple(extra_tensors),
    )


def lay_out(tensors: Sequence[TensorPair], max_shard_bytes: int) -> tuple[OutputShard, ...]:
    """Fill as few files as the limit allows, evenly, in natural order of names (2 before 10).

    Filled to the limit, the last of two would be small, and the other one all that a run waits for.
    A tensor that is bigger than the limit gets a file of its own.
    """
    ordered = sorted(tensors, key=lambda p: natural_key(p.name))
    fullest = _fill(ordered, max_shard_bytes)
    groups = _fill(ordered, max_shard_bytes, num_files=len(fullest))
    if len(groups) > len(fullest):  # large tensors do not always allow it
        groups = fullest
    total = len(groups)
    if total == 1:
        return (OutputShard(name=SINGLE_NAME, tensors=tuple(groups[0])),)
    return tuple(
        OutputShard(name=f"model-{i:05d}-of-{total:05d}.safetensors", tensors=tuple(group))
        for i, group in enumerate(groups, start=1)
    )


def _fill(
    ordered: Sequence[TensorPair], max_bytes: int, num_files: int = 1
) -> list[list[TensorPair]]:
    """Return groups that end at the limit, or where one of `num_files` equal parts does."""
    whole_bytes = sum(pair.output_bytes for pair in ordered)
    groups: list[list[TensorPair]] = [[]]
    filled = done = 0
    for pair in ordered:
        num_bytes = pair.output_bytes
        is_part = (done + num_bytes / 2) * num_files > whole_bytes * len(groups)
        if groups[-1] and (is_part or filled + num_bytes > max_bytes):
            groups.append([])
            filled = 0
        groups[-1].append(pair)
        filled += num_bytes
        done += num_bytes
    return groups


def plan_digest(
    plan: Plan,
    alpha: float | None,
    attachments: dict[str, str],
    tensor_alphas: Mapping[str, float] | None = None,
    at_step: float | None = None,
) -> str:
    """Return what decides whether two runs would write the same files.

    Args:
        plan: The plan.
        alpha: The alpha of one output, None under alpha rules.
        attachments: sha256 of config.json and of every sidecar, by name.
        tensor_alphas: Under alpha rules, the alpha of every tensor that the formula covers.
        at_step: Of a fitted model, its step.
    """
    alphas = {"": alpha} if alpha is not None else dict(tensor_alphas or {})
    facts: dict[str, Any] = {
        "plan_version": PLAN_VERSION,
        "formula": plan.formula,
        "alpha": {name: round_alpha(value).hex() for name, value in alphas.items()},
        "alpha_float64": {name: value.hex() for name, value in alphas.items()}
        if plan.has_float64
        else None,
        **{side: checkpoint.identity() for side, checkpoint in plan.pair.sides.items()},
        "output_dtype": plan.output_dtype,
        "max_shard_bytes": plan.max_shard_bytes,
        "vocab_policy": plan.vocab_policy,
        "attachments": attachments,
    }
    if plan.pair.vocabulary is not None and plan.pair.vocabulary.by == "tokens":
        facts["vocabulary_rows"] = plan.pair.vocabulary.digest()
    if plan.is_requantized:
        facts["requantization"] = REQUANTIZATION
    if plan.extra_tensors:
        facts["extra_tensors"] = sorted(plan.extra_tensors)
    if plan.path is not None:
        facts["trajectory"] = plan.path.as_dict()
        if plan.path.start == FITTED:
            facts["trajectory"]["at_step"] = at_step
    if plan.transforms:
        facts["transforms"] = list(map(str, plan.transforms))
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def computes_float64(pair: TensorPair) -> bool:
    """Tell whether any side is float64, so that the arithmetic is too."""
    sides = (pair.base, pair.aligned, pair.initial)
    return any(side.dtype == "F64" for side in sides if side is not None)


def used_bytes(pair: TensorPair) -> int:
    """Return the bytes of all inputs of one tensor that one pass reads."""
    total = pair.base.input_bytes(pair.base.num_elements) + used_initial_bytes(pair)
    total += sum(ref.input_bytes(pair.num_extrapolated) for ref in pair.between)
    if pair.onto is not None and pair.initial is not None:
        total += pair.aligned.input_bytes(pair.num_extrapolated)
    return total


def used_initial_bytes(pair: TensorPair) -> int:
    """Return the bytes of the initial tensor that the formula reads."""
    if pair.initial is None:
        return 0
    return pair.initial.input_bytes(pair.num_extrapolated)


def input_facts(checkpoint: Checkpoint, files: set[str]) -> dict[str, FileFacts]:
    """Return what identifies some weight files of a checkpoint."""
    return {name: checkpoint.weight_files[name].facts for name in sorted(files)}


def parse_size(value: str | int, *, name: str = "max_shard_size") -> int:
    """Return a number of bytes: 5GB, 500MB, 2GiB, or a plain number.

    Raises:
        ConfigError: It is no positive size.
    """
    # pydantic.ByteSize would read "1,5GB" as one byte, and "5GB/s" as 5 GB.
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", str(value))
    unit = _UNITS.get(match[2].upper()) if match else None
    size = int(float(match[1]) * unit) if match and unit else 0
    if size <= 0:
        raise ConfigError(
            "not a size", where=argument(name), got=value, expected="for example 5GB or 500MB"
        )
    return size


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Return a sort key that puts layer 2 before layer 10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(p), p) if p.isascii() and p.isdigit() else (1, 0, p) for p in parts if p]
