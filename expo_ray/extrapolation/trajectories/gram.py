"""The pass over all checkpoints of a trajectory that gives the Gram matrix of every tensor."""

from __future__ import annotations

from expo_ray.extrapolation.arithmetic.path_sums import PathSums
from expo_ray.extrapolation.nodes.fanout import run_tasks
from expo_ray.extrapolation.planning.plan import Plan, lay_out
from expo_ray.extrapolation.shards.tasks import MEASURE_PATHS, ShardReport, shard_task
from expo_ray.extrapolation.trajectories.fits import Weights
from expo_ray.extrapolation.trajectories.kept_sums import KeptSums
from expo_ray.extrapolation.trajectories.trajectory import Trajectory
from expo_ray.progress import NullProgress, Progress

_TASK_BYTES = 4 * 10**9
_MIN_TENSOR_BYTES = 64 * 2**20


def measure_gram(
    trajectory: Trajectory,
    *,
    address: str | None = None,
    progress: Progress | None = None,
    kept: KeptSums | None = None,
) -> dict[str, Weights]:
    """Return the Gram matrix of the changes of every tensor, as `rank1_weights` takes it.

    Args:
        trajectory: The checkpoints; each byte of them is read once.
        address: As for `extrapolate`.
        progress: Where to report.
        kept: What an earlier run has measured already, and where this one keeps what it does.

    Raises:
        ShardError: A checkpoint is not finite (it is named), or changed meanwhile.
    """
    found = measure_path_sums(trajectory, address=address, progress=progress, kept=kept)
    return {name: sums.gram for name, sums in found.items()}


def measure_path_sums(
    trajectory: Trajectory,
    *,
    address: str | None = None,
    progress: Progress | None = None,
    kept: KeptSums | None = None,
) -> dict[str, PathSums]:
    """Return all sums over the path of every tensor that a fit covers, by name.

    Args:
        trajectory: As for `measure_gram`.
        address: As for `measure_gram`.
        progress: As for `measure_gram`.
        kept: As for `measure_gram`.

    Raises:
        ShardError: As for `measure_gram`.
    """
    tensors = [pair for pair in trajectory.pair.tensors if pair.path]
    task_bytes = max(_MIN_TENSOR_BYTES, _TASK_BYTES // len(trajectory.points))
    plan = Plan(
        pair=trajectory.pair,
        shards=lay_out(tensors, task_bytes),
        output_dtype="auto",
        max_shard_bytes=task_bytes,
        vocab_policy="refuse",
    )
    tasks = [shard_task(plan, shard, MEASURE_PATHS, ()) for shard in plan.shards]
    found: dict[str, PathSums] = {}
    missing = []
    for task in tasks:
        sums = None if kept is None else kept.read(task)
        if sums is None:
            missing.append(task)
        else:
            found |= sums

    def finished(index: int, report: ShardReport) -> None:
        if kept is not None:
            kept.write(missing[index], report.statistics)
        for name, table in report.statistics.items():
            found[name] = PathSums.unpacked(table)

    bar = (progress or NullProgress()).start("Measuring the path", plan.input_bytes, "B")
    try:
        bar.advance(plan.input_bytes - sum(task.shard.input_bytes for task in missing))
        if missing:
            run_tasks(missing, address=address, advance=bar.advance, finished=finished)
    finally:
        bar.close()
    return {pair.name: found[pair.name] for shard in plan.shards for pair in shard.tensors}
