"""Where does a training go, and how far may a fit be trusted? One read of its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expo_ray.checkpoints.storages.local_output import require_writable_folder
from expo_ray.errors import WorkError
from expo_ray.extrapolation.arithmetic.path_sums import PathSums
from expo_ray.extrapolation.outputs.results import SCHEMA_VERSION
from expo_ray.extrapolation.pairing.modules import GROUPS, layer_position, module_group
from expo_ray.extrapolation.trajectories.backtest import BackTest, back_tests
from expo_ray.extrapolation.trajectories.diagnosis_file import identity_of, write_diagnosis
from expo_ray.extrapolation.trajectories.fits import DEFAULT_OPTIONS, FitOptions
from expo_ray.extrapolation.trajectories.gram import measure_path_sums
from expo_ray.extrapolation.trajectories.kept_sums import KeptSums
from expo_ray.extrapolation.trajectories.path_shape import (
    PathShape,
    Step,
    coordinates,
    direction_shares,
    path_shape,
    path_steps,
    total_of,
)
from expo_ray.extrapolation.trajectories.trajectory import open_trajectory
from expo_ray.extrapolation.trajectories.trajectory_file import TrajectorySource
from expo_ray.extrapolation.trajectories.verdict import Score, Verdict, judge, scores
from expo_ray.progress import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class TrajectoryDiagnosis:
    """What was found about the checkpoints of one training."""

    checkpoints: tuple[str, ...]
    identities: tuple[str | None, ...]
    """Of each checkpoint a digest that tells its weights from others; None where it is unknown."""
    steps: tuple[float, ...]
    verdict: Verdict
    total: PathShape
    share_rank1: float | None
    """Share of the squared changes that the first direction of each tensor explains."""
    path: tuple[Step, ...]
    coordinates: tuple[tuple[float, ...], ...]
    """Of each checkpoint, in the first directions of all tensors together."""
    groups: Mapping[str, PathShape]
    layers: tuple[tuple[str, int, PathShape], ...]
    """(stack, depth, shape), from the first layer to the last."""
    scores: tuple[Score, ...]
    back_tests: tuple[BackTest, ...]
    num_tensors: int
    num_elements: int
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON of the command."""
        points = zip(self.steps, self.checkpoints, self.identities, self.coordinates, strict=True)
        return {
            "schema_version": SCHEMA_VERSION,
            "verdict": self.verdict.as_dict(),
            "checkpoints": [
                {"step": step, "checkpoint": uri, "identity": identity, "coordinates": list(place)}
                for step, uri, identity, place in points
            ],
            **self.total.as_dict(),
            "share_rank1": self.share_rank1,
            "num_tensors": self.num_tensors,
            "num_elements": self.num_elements,
            "steps": [step.as_dict() for step in self.path],
            "groups": {name: shape.as_dict() for name, shape in self.groups.items()},
            "layers": [
                {"stack": stack, "layer": layer, **shape.as_dict()}
                for stack, layer, shape in self.layers
            ],
            "scores": [score.as_dict() for score in self.scores],
            "back_tests": [test.as_dict() for test in self.back_tests],
            "notes": list(self.notes),
        }


def diagnose_trajectory(
    trajectory: TrajectorySource,
    *,
    output: str | Path | None = None,
    extra_tensors: Sequence[str] = (),
    address: str | None = None,
    progress: Progress | None = None,
) -> TrajectoryDiagnosis:
    """Read all checkpoints of a training once and say how far which fit may be trusted.

    Args:
        trajectory: A YAML list of `{step: 100, checkpoint: ./step_100}`, the output folder of a
            trainer, or the points themselves.
        output: Folder to write the diagnosis into; `write_report` makes a page of it. What was
            measured is kept there until then: a run that was stopped goes on.
        extra_tensors: As for `extrapolate`.
        address: As for `extrapolate`.
        progress: Where to report.

    Returns:
        The shape of the path, the back-tests of all fits, and the verdict.

    Raises:
        RequestError: The checkpoints do not make a trajectory, or the folder cannot be written.
        WorkError: A checkpoint is not finite (it is named), or changed meanwhile.

    Example:
        >>> found = expo_ray.diagnose_trajectory("training", address="inline")
        >>> found.verdict.decision in ("extrapolate", "keep", "unknown")
        True
    """
    folder = None if output is None else require_writable_folder(output)
    opened = open_trajectory(trajectory, extra_tensors=extra_tensors)
    kept = None if folder is None else KeptSums(folder, opened)
    sums = measure_path_sums(opened, address=address, progress=progress, kept=kept)
    # One matrix that is stored under two names counts once.
    tied = {p.name for p in opened.pair.tensors if p.tied_to not in (None, p.name)}
    found = judge_path(
        {name: one for name, one in sums.items() if name not in tied},
        opened.steps,
        checkpoints=[checkpoint.uri for checkpoint in opened.checkpoints],
        identities=[identity_of(checkpoint) for checkpoint in opened.checkpoints],
        notes=opened.pair.notes,
    )
    if folder is not None and kept is not None:
        write_diagnosis(folder, found.as_dict())
        kept.remove()
    return found


def judge_path(
    tensors: Mapping[str, PathSums],
    steps: Sequence[float],
    *,
    checkpoints: Sequence[str],
    identities: Sequence[str] = (),
    notes: Sequence[str] = (),
    options: FitOptions = DEFAULT_OPTIONS,
) -> TrajectoryDiagnosis:
    """Return what the sums over a path say of it; nothing is read.

    Args:
        tensors: The sums of every tensor, by name.
        steps: Of the checkpoints.
        checkpoints: Where they lie.
        identities: Which version of each it is.
        notes: What else is to be told.
        options: Of the fits.

    Raises:
        WorkError: All checkpoints hold the same weights.
    """
    total = total_of(tensors.values())
    if total is None or not total.gram.any():
        raise WorkError(
            "all checkpoints of the trajectory hold the same weights",
            where=f"{checkpoints[0]} ... {checkpoints[-1]}",
            hint="check that the paths are the ones you meant, and that the training saved what it "
            "trained",
        )
    tests = back_tests(tensors, steps, options=options)
    shares = [(float(one.gram.trace()), direction_shares(one.gram)) for one in tensors.values()]
    return TrajectoryDiagnosis(
        checkpoints=tuple(checkpoints),
        identities=tuple(identities or [None] * len(checkpoints)),
        steps=tuple(map(float, steps)),
        verdict=judge(tests, steps),
        total=path_shape(total, steps),
        share_rank1=sum(size * share[0] for size, share in shares if share) / total.gram.trace(),
        path=path_steps(total, steps),
        coordinates=tuple(map(tuple, coordinates(total.gram).tolist())),
        groups=_groups(tensors, steps),
        layers=_layers(tensors, steps),
        scores=scores(tests, steps),
        back_tests=tests,
        num_tensors=len(tensors),
        num_elements=total.num_elements,
        notes=tuple(notes),
    )


def _groups(tensors: Mapping[str, PathSums], steps: Sequence[float]) -> dict[str, PathShape]:
    totals = {
        group: total_of(one for name, one in tensors.items() if module_group(name) == group)
        for group in GROUPS
    }
    return {group: path_shape(t, steps) for group, t in totals.items() if t is not None}


def _layers(
    tensors: Mapping[str, PathSums], steps: Sequence[float]
) -> tuple[tuple[str, int, PathShape], ...]:
    members: dict[tuple[str, int], list[PathSums]] = {}
    for name, one in tensors.items():
        position = layer_position(name)
        if position is not None:
            members.setdefault(position, []).append(one)
    found = []
    for (stack, layer), sums in sorted(members.items()):
        total = total_of(sums)
        if total is not None:
            found.append((stack, layer, path_shape(total, steps)))
    return tuple(found)
