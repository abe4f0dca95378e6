"""What a validated pair is: every output tensor, and where its inputs lie."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from expo_ray.checkpoints.checkpoint import Checkpoint
from expo_ray.checkpoints.formats.fp8_format import BlockFormat
from expo_ray.checkpoints.formats.header import TensorRef, tensor_bytes
from expo_ray.extrapolation.pairing.vocabulary import (
    RowRun,
    Vocabulary,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """Consecutive elements of aligned that one rule covers."""

    start: int
    num_elements: int
    initial_start: int | None
    """Where initial has them; None where they are copied from aligned."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TensorPair:
    """One output tensor and where its inputs lie."""

    aligned: TensorRef
    initial: TensorRef | None
    """None where the tensor is copied from aligned."""
    num_extrapolated: int
    """Elements that the formula covers; the others are copied from aligned."""
    output_dtype: str
    runs: tuple[RowRun, ...] = ()
    """Where rows belong to tokens: which of them are extrapolated, and from which of initial."""
    blocks: BlockFormat | None = None
    """Of FP8 codes that are written with block scales; None for plain weights."""
    onto: TensorRef | None = None
    """What delta is added to, where that is not aligned."""
    tied_to: str | None = None
    """Where the base stores this matrix under several names: the first, which is keyed by."""
    between: tuple[TensorRef, ...] = ()
    """Of a trajectory: the same tensor in each checkpoint between initial and aligned."""

    @property
    def path(self) -> tuple[TensorRef, ...]:
        """The tensor in every checkpoint, in the order of the training; none where it is copied."""
        return () if self.initial is None else (self.initial, *self.between, self.aligned)

    @property
    def base(self) -> TensorRef:
        """What delta is added to; the output has its name, shape and copied elements."""
        return self.onto or self.aligned

    @property
    def name(self) -> str:
        """Name of the output tensor."""
        return self.base.name

    @property
    def segments(self) -> tuple[Segment, ...]:
        """All elements, in order."""
        if self.runs:
            row = self.aligned.num_elements // max(1, self.aligned.shape[0])
            return tuple(
                Segment(
                    start=run.start * row,
                    num_elements=run.num_rows * row,
                    initial_start=None if run.initial_start is None else run.initial_start * row,
                )
                for run in self.runs
            )
        initial_start = 0 if self.num_extrapolated else None
        total = self.aligned.num_elements
        return (Segment(start=0, num_elements=total, initial_start=initial_start),)

    @property
    def outputs(self) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
        """Name, dtype and shape of what is written: one tensor, or codes and their scales."""
        tensor = (self.name, self.output_dtype, self.aligned.shape)
        if self.blocks is None:
            return (tensor,)
        scales = self.blocks.scales_of(self.aligned.shape)
        return (tensor, (self.blocks.scale_name(self.name), self.blocks.scale_dtype, scales))

    @property
    def output_bytes(self) -> int:
        """Bytes of what is written."""
        return sum(tensor_bytes(dtype, shape) for _, dtype, shape in self.outputs)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """A validated pair."""

    initial: Checkpoint
    aligned: Checkpoint
    tensors: tuple[TensorPair, ...]
    """Sorted by name; every tensor of the base, no other."""
    notes: tuple[str, ...]
    """What was decided and might surprise: tied names, copied rows."""
    vocabulary: Vocabulary | None = None
    """How rows were matched, where the two vocabularies differ."""
    onto: Checkpoint | None = None
    """What delta is added to, where that is not aligned."""
    left_out: tuple[str, ...] = ()
    """Tensors that the base does not have, by leave."""
    between: Mapping[str, Checkpoint] = field(default_factory=dict)
    """Of a trajectory: the checkpoints between initial and aligned, in order, by "step 200"."""
    end_labels: tuple[str, str] = ("initial", "aligned")
    """What errors call the two ends: of a trajectory their steps."""

    @property
    def base(self) -> Checkpoint:
        """What delta is added to; config and the files beside the weights are its own."""
        return self.onto or self.aligned

    @property
    def sides(self) -> dict[str, Checkpoint]:
        """All inputs by the name of their role."""
        sides = {"initial": self.initial, **self.between, "aligned": self.aligned}
        return sides if self.onto is None else {**sides, "onto": self.onto}
