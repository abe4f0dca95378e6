"""What a run tells of its plan and its outputs, before and after the work."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from expo_ray.checkpoints.storages.storage import RECORD_NAME
from expo_ray.errors import ConfigError, argument, first_names
from expo_ray.extrapolation.arithmetic.requantization_costs import (
    describe_loss,
    requantization_loss,
)
from expo_ray.extrapolation.nodes.batches import batch_tasks
from expo_ray.extrapolation.nodes.capacity import WORKER_MEMORY_BYTES
from expo_ray.extrapolation.nodes.trial_load import LoadingCheck
from expo_ray.extrapolation.outputs.results import ExtrapolationResult, OutputResult
from expo_ray.extrapolation.outputs.targets import (
    Target,
    plan_tasks,
)
from expo_ray.extrapolation.planning.plan import (
    Plan,
    parse_size,
)
from expo_ray.extrapolation.planning.time_estimate import estimate
from expo_ray.extrapolation.shards.receipts import read_receipt
from expo_ray.extrapolation.shards.tasks import (
    TASK_MEMORY_BYTES,
    ShardTask,
    extra_memory_bytes,
)


def described_cluster(
    nodes: int | None, node_bandwidth: str | int | None, *, dry_run: bool
) -> tuple[int, float] | None:
    """Return nodes and bandwidth of the cluster that a time estimate is asked for.

    Raises:
        ConfigError: One of them is missing, or this is no dry run.
    """
    if nodes is None and node_bandwidth is None:
        return None
    if not dry_run or nodes is None or node_bandwidth is None or nodes < 1:
        raise ConfigError(
            "a time estimate needs a dry run, nodes and their bandwidth",
            where=f"{argument('nodes')} {argument('node_bandwidth')}",
            got=f"{nodes} nodes of {node_bandwidth}, {'' if dry_run else 'no '}dry run",
            expected=f"{argument('dry_run', True)} {argument('nodes', 16)} "
            f"{argument('node_bandwidth', '2GB')}",
        )
    return nodes, parse_size(node_bandwidth, name="node_bandwidth")


def dry_result(
    plan: Plan,
    targets: Sequence[Target],
    started: float,
    cluster: tuple[int, float] | None,
) -> ExtrapolationResult:
    """Return what a run would do."""
    outputs = []
    for target in targets:
        for shard in plan.shards:
            receipt = read_receipt(target.folder, shard.name, target.plan_digest)
            target.num_resumed += receipt is not None
        complete = target.is_done and (target.folder / RECORD_NAME).exists()
        outputs.append(output_result(plan, target, "skipped" if complete else "planned", None))
    tasks = plan_tasks(plan, targets)
    return ExtrapolationResult(
        outputs=tuple(outputs),
        num_tasks=len(tasks),
        bytes_read=0,
        bytes_written=0,
        seconds=time.monotonic() - started,
        notes=(*plan.pair.notes, *carrying_notes(plan)),
        dry_run=True,
        plan={
            **plan_summary(plan, targets),
            "estimate": _estimate(plan, tasks, cluster) if cluster else None,
        },
    )


def plan_summary(plan: Plan, targets: Sequence[Target]) -> dict[str, Any]:
    """Return the size of the work, JSON-able."""
    pending = sum(not target.is_done for target in targets)
    resolution = next((target.resolution for target in targets), None)
    folders = [str(target.folder) for target in targets]
    extra_bytes = extra_memory_bytes(
        plan.pair.tensors, plan.transforms, folders, has_directions=plan.path is not None
    )
    return {
        "num_shards": len(plan.shards),
        "num_tensors": len(plan.pair.tensors),
        "num_parameters": plan.pair.base.num_parameters,
        "bytes_in": _bytes_in(plan) if pending else 0,
        "bytes_out": plan.file_bytes * pending,
        "task_memory_bytes": TASK_MEMORY_BYTES + extra_bytes,
        "worker_memory_bytes": WORKER_MEMORY_BYTES + extra_bytes,
        "transforms": list(map(str, plan.transforms)),
        "trajectory": _trajectory(plan),
        "alpha_rules": resolution.as_dict() if resolution else None,
        "shards": [
            {"name": s.name, "bytes_in": s.input_bytes, "bytes_out": s.data_bytes}
            for s in plan.shards
        ],
    }


def _trajectory(plan: Plan) -> dict[str, Any] | None:
    if plan.path is None:
        return None
    found = plan.path.as_dict()
    return {**found, "num_checkpoints": len(plan.path.steps), "bytes_gram_pass": plan.gram_bytes}


def _bytes_in(plan: Plan) -> int:
    return plan.input_bytes + plan.transform_bytes(plan.pair.tensors) + plan.gram_bytes


def output_result(plan: Plan, target: Target, status: str, digest: str | None) -> OutputResult:
    """Return the result of one checkpoint."""
    return OutputResult(
        alpha=target.alpha,
        at_step=target.at_step,
        path=str(target.folder),
        status=status,
        weights_digest=digest,
        num_bytes=plan.file_bytes,
        num_shards=len(plan.shards),
        num_shards_resumed=target.num_resumed,
    )


def loading_notes(loading: LoadingCheck | None) -> list[str]:
    """Return in words what the trial load found, where it found something."""
    if loading is None or loading.status == "loads":
        return []
    names = [*loading.missing, *loading.unexpected]
    detail = loading.note or f"{len(names)} names missing or unexpected, first {names[0]}"
    return [f"trial load by transformers, as for the input itself: {loading.status} ({detail})"]


def carrying_notes(plan: Plan) -> list[str]:
    """Return in words which files beside the weights stay behind."""
    names, links = plan.pair.base.other_files, sorted(plan.pair.base.links)
    notes = [f"not carried to the output: {first_names(names)}"] if names else []
    if links:
        notes.append(f"not carried, as links that leave the checkpoint: {first_names(links)}")
    return notes


def unmoved_notes(targets: Sequence[Target]) -> list[str]:
    """Return a warning where delta was zero everywhere, which may show only in the arithmetic.

    Sides of two dtypes, or an adapter that was never trained, are not equal byte by byte.
    """
    if any(target.direction is not None for target in targets):
        return []  # the two ends of a path may be one place
    facts = (f for t in targets for r in t.receipts.values() for f in r.tensors.values())
    moved = (f["statistics"]["num_moved"] > 0 for f in facts if "statistics" in f)
    # The search ends at the first tensor that moved, as a rule the very first one.
    if next(moved, True) or any(moved):
        return []
    return ["warning: initial and aligned hold the same values: the output is aligned itself"]


def rounding_notes(plan: Plan, targets: Sequence[Target]) -> list[str]:
    """Return in words what writing FP8 blocks again cost, per checkpoint."""
    if not plan.is_requantized:
        return []
    notes = []
    for target in targets:
        facts = (f for r in target.receipts.values() for f in r.tensors.values())
        if target.receipts:
            notes.append(f"{target.folder.name}: {describe_loss(requantization_loss(facts))}")
    return notes


def _estimate(plan: Plan, tasks: Sequence[ShardTask], cluster: tuple[int, float]) -> dict[str, Any]:
    num_nodes, node_bandwidth = cluster
    sizes = [
        task.shard.input_bytes
        + plan.transform_bytes(task.shard.tensors)
        + task.shard.data_bytes * len(task.outputs)
        for task in tasks
    ]
    batches = [sum(sizes[i] for i in batch) for batch in batch_tasks(tasks)]
    found = estimate(batches, num_nodes=num_nodes, node_bandwidth=node_bandwidth)
    if not plan.gram_bytes or not tasks:
        return found
    # The pass before it, over the same tensors, is cut into many more tasks than nodes.
    seconds = plan.gram_bytes / (num_nodes * node_bandwidth)
    return {
        **found,
        "seconds": round(found["seconds"] + seconds, 3),
        "lower_bound_seconds": round(found["lower_bound_seconds"] + seconds, 3),
        "node_hours": round(found["node_hours"] + seconds * num_nodes / 3600, 3),
    }
