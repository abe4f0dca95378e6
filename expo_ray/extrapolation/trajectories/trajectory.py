"""A trajectory as its headers describe it: N checkpoints of one model, matched with the last one.

The pair of a trajectory is its first and its last checkpoint; what lies between them is in
`Pair.between`. No weight is read here but for what ties and tokenizers need.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from expo_ray.checkpoints.checkpoint import Checkpoint
from expo_ray.checkpoints.formats.header import TensorRef
from expo_ray.checkpoints.opening import open_checkpoint, without_block_scales
from expo_ray.errors import CheckpointError, ExpoError, PairError
from expo_ray.extrapolation.pairing.extra_tensors import parse_extra_tensors, refuse_unused
from expo_ray.extrapolation.pairing.pair import match_pair, refuse_equal_weights
from expo_ray.extrapolation.pairing.tensor_pair import Pair, TensorPair
from expo_ray.extrapolation.planning.path import step_name
from expo_ray.extrapolation.trajectories.trajectory_file import (
    FLAG,
    TrajectoryPoint,
    TrajectorySource,
    read_trajectory,
)

_ONE_MODEL = "all checkpoints of a trajectory are of one model, saved in one dtype"


@dataclass(frozen=True, kw_only=True, slots=True)
class Trajectory:
    """The checkpoints of one training, matched tensor by tensor."""

    points: tuple[TrajectoryPoint, ...]
    """In the order of the training."""
    pair: Pair
    """The first checkpoint as initial, the last as aligned, the others between them; the tensors
    name their places in all: `TensorPair.path`."""

    @property
    def steps(self) -> tuple[float, ...]:
        """The steps, increasing."""
        return tuple(float(point.step) for point in self.points)

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        """The checkpoints, in the order of the steps."""
        return (self.pair.initial, *self.pair.between.values(), self.pair.aligned)


def open_trajectory(
    source: TrajectorySource,
    *,
    output_dtype: str = "auto",
    extra_tensors: Sequence[str] = (),
    copied: Collection[str] | None = None,
) -> Trajectory:
    """Read the headers of all checkpoints of a trajectory and match them with the last one.

    Args:
        source: A YAML file, the output folder of a trainer, or the points themselves.
        output_dtype: As for `match_pair`.
        extra_tensors: `copy:PATTERN`, as for `extrapolate`.
        copied: Where some checkpoints of a longer trajectory are opened: the tensors that are
            copied from the last one because of the others.

    Raises:
        CheckpointError: A checkpoint is missing, malformed or quantized; the error names its step.
        ConfigError: The trajectory is malformed, or its steps do not increase.
        PairError: A checkpoint is of another model; the error names its step and the tensor.
    """
    points = read_trajectory(source)
    patterns = parse_extra_tensors(extra_tensors)
    checkpoints = [_open(point) for point in points]
    *others, last = zip(points, checkpoints, strict=True)
    pairs = []
    for point, checkpoint in others:
        _refuse_other_model(point, checkpoint, *last)
        with _told_by_step(point, last[0]):
            pairs.append(
                match_pair(checkpoint, last[1], output_dtype=output_dtype, extra_tensors=patterns)
            )
    if copied is None:
        refuse_unused(patterns, checkpoints)
    return Trajectory(points=points, pair=_joined(points, pairs, copied or ()))


def refuse_unmoved(trajectory: Trajectory) -> None:
    """Let trajectories pass of which some checkpoint differs from the last one.

    Raises:
        PairError: All hold the same weights.
    """
    pair = trajectory.pair
    for number, checkpoint in enumerate(trajectory.checkpoints[:-1]):
        moved = tuple(replace(t, initial=t.path[number]) for t in pair.tensors if t.path)
        try:
            refuse_equal_weights(replace(pair, initial=checkpoint, tensors=moved))
        except PairError:
            continue
        return
    raise PairError(
        "all checkpoints of the trajectory hold the same weights",
        where=f"{pair.initial.uri} ... {pair.aligned.uri}",
        hint="check that the paths are the ones you meant, and that the training saved what it "
        "trained",
    )


def label_of(step: float) -> str:
    """Return what a checkpoint is called in errors and records: "step 200"."""
    return f"step {step_name(step)}"


def _open(point: TrajectoryPoint) -> Checkpoint:
    try:
        return without_block_scales(open_checkpoint(point.checkpoint))
    except CheckpointError as error:
        error.tell("where", f"{label_of(point.step)} of the trajectory: {error.told('where')}")
        raise


def _refuse_other_model(
    point: TrajectoryPoint, checkpoint: Checkpoint, last: TrajectoryPoint, aligned: Checkpoint
) -> None:
    """Let checkpoints pass whose common tensors have one shape and are stored in one dtype."""
    for name, ref in checkpoint.tensors.items():
        other = aligned.tensors.get(name)
        if other is None:
            continue
        # An adapter is summed in float32, on a base that may be a checkpoint of the same path.
        dtypes = {
            side.auto_dtypes.get(name, side.tensors[name].dtype) for side in (checkpoint, aligned)
        }
        if ref.shape == other.shape and len(dtypes) == 1:
            continue
        what = "shape" if ref.shape != other.shape else "dtype"
        raise PairError(
            f"a checkpoint of the trajectory has a tensor of another {what}",
            where=f"{label_of(point.step)} ({checkpoint.uri}), tensor {name!r}",
            got=_form(ref),
            expected=f"{_form(other)}, as in {label_of(last.step)}",
            hint=_ONE_MODEL,
        )


def _form(ref: TensorRef) -> str:
    return f"{ref.dtype} {list(ref.shape)}"


@contextmanager
def _told_by_step(point: TrajectoryPoint, last: TrajectoryPoint) -> Iterator[None]:
    """Let errors about a pair speak of the two steps that it is made of."""
    names = {"initial": label_of(point.step), "aligned": label_of(last.step)}
    try:
        yield
    except ExpoError as error:
        for field, text in error.texts().items():
            if text is not None:
                # Settings of these names are marked, see `argument`, and stay.
                told = re.sub(r"(?<!\x02)\b(initial|aligned)\b", lambda m: names[m[1]], text)
                error.tell(field, told)
        if label_of(point.step) not in (error.where or ""):
            error.tell("where", f"{label_of(point.step)} of {FLAG}, {error.told('where')}")
        raise


def _joined(
    points: Sequence[TrajectoryPoint], pairs: Sequence[Pair], copied: Collection[str]
) -> Pair:
    """Return one pair from those of every checkpoint with the last one."""
    first, *others = pairs
    labels = [label_of(point.step) for point in points[1:-1]]
    rows = zip(*(pair.tensors for pair in pairs), strict=True)
    return replace(
        first,
        tensors=tuple(_joined_tensor(row, copied) for row in rows),
        end_labels=(label_of(points[0].step), label_of(points[-1].step)),
        between=dict(zip(labels, (pair.initial for pair in others), strict=True)),
        notes=_notes(points, pairs),
        left_out=tuple(sorted({name for pair in pairs for name in pair.left_out})),
    )


def _joined_tensor(row: Sequence[TensorPair], copied: Collection[str]) -> TensorPair:
    # A buffer that one checkpoint has in another form, or not at all, is copied from the last.
    found = next((tensor for tensor in row if tensor.initial is None), None)
    if found is None and row[0].name in copied:
        found = replace(row[0], initial=None, num_extrapolated=0)
    if found is not None:
        return replace(found, between=())
    return replace(row[0], between=tuple(t.initial for t in row[1:] if t.initial is not None))


def _notes(points: Sequence[TrajectoryPoint], pairs: Sequence[Pair]) -> tuple[str, ...]:
    """Return the notes on all pairs, those on a checkpoint between with its step before them."""
    found: dict[str, None] = {}
    bases: dict[str, None] = {}
    for point, pair in zip(points, pairs, strict=False):
        for note in pair.notes:
            side, is_adapter, base = note.partition(" is a LoRA adapter on ")
            if is_adapter and side in ("initial", "aligned"):
                bases[base] = None
            else:
                found[note if pair is pairs[0] else f"{label_of(point.step)}: {note}"] = None
    return (*(f"LoRA adapters on {base}" for base in bases), *found)
