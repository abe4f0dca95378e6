"""From a plan and its outputs to complete checkpoints: claim, fan out, reassemble, publish."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from expo_ray.errors import RequestError, ShardError
from expo_ray.extrapolation.nodes.fanout import run_tasks
from expo_ray.extrapolation.nodes.node_check import plan_check
from expo_ray.extrapolation.nodes.trial_load import LoadingCheck, LoadingRequest, loading_request
from expo_ray.extrapolation.outputs.assembly import Attachments, assemble
from expo_ray.extrapolation.outputs.publishing import push
from expo_ray.extrapolation.outputs.record import read_record
from expo_ray.extrapolation.outputs.results import ExtrapolationResult, OutputResult
from expo_ray.extrapolation.outputs.summaries import (
    carrying_notes,
    loading_notes,
    output_result,
    plan_summary,
    rounding_notes,
    unmoved_notes,
)
from expo_ray.extrapolation.outputs.targets import (
    Target,
    begin,
    check_space,
    claim,
    plan_tasks,
    release,
)
from expo_ray.extrapolation.outputs.work_folder import remove_work_folder, written_bytes
from expo_ray.extrapolation.planning.mergekit_export import MergekitFile
from expo_ray.extrapolation.planning.plan import Plan
from expo_ray.extrapolation.shards.tasks import ShardReport, ShardTask
from expo_ray.progress import NullProgress, Progress

Prepare = Callable[[Sequence[Target]], int]
"""Completes the pending targets, such as by a pass over the inputs; returns the bytes it read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Writing:
    """How outputs are written, whatever is in them."""

    started: float
    """When the request came, on the monotonic clock."""
    allow_nonfinite: bool = False
    allow_overflow: bool = False
    overwrite: bool = False
    exported: MergekitFile | None = None
    repos: tuple[str, ...] = ()
    """Of the Hub, one per target; none without publishing."""
    private: bool = False
    address: str | None = None
    progress: Progress = field(default_factory=NullProgress)

    @property
    def allow(self) -> dict[str, bool]:
        """Which checks are switched off."""
        return {"allow_nonfinite": self.allow_nonfinite, "allow_overflow": self.allow_overflow}


def write_outputs(
    plan: Plan,
    targets: Sequence[Target],
    attachments: Attachments,
    writing: Writing,
    *,
    prepare: Prepare = lambda _: 0,
) -> ExtrapolationResult:
    """Write what the targets still lack, and complete them.

    Args:
        plan: The plan.
        targets: The outputs; complete ones are left alone.
        attachments: What lies beside the weights.
        writing: How.
        prepare: Called when the outputs are claimed, before the tasks are made.

    Raises:
        RequestError: The request was wrong; nothing was written.
        WorkError: The work failed; starting it again continues.
    """
    if not all(target.is_done for target in targets):
        check_space(plan, targets)
    with contextlib.ExitStack() as stack:
        try:
            for target in targets:
                if not target.is_done:
                    claim(stack, plan, target, overwrite=writing.overwrite)
            pending = [target for target in targets if not target.is_done]
            bytes_before = prepare(pending) if pending else 0
            tasks = plan_tasks(plan, targets, **writing.allow)
            loading_of = loading_request(plan, attachments.config)
            reports, loading = _run(plan, targets, tasks, loading_of, writing)
        except RequestError:
            release(targets)
            raise
        for report in reports:
            _collect(targets, tasks, report)
        outputs = [_finish(plan, t, attachments, loading, writing.allow) for t in targets]
    if writing.repos:
        outputs = [
            replace(o, pushed_to=push(Path(o.path), repo, private=writing.private))
            for o, repo in zip(outputs, writing.repos, strict=True)
        ]
    return ExtrapolationResult(
        outputs=tuple(outputs),
        num_tasks=len(tasks),
        bytes_read=bytes_before + sum(report.bytes_read for report in reports),
        bytes_written=sum(report.bytes_written for report in reports),
        seconds=time.monotonic() - writing.started,
        notes=(
            *plan.pair.notes,
            *carrying_notes(plan),
            *loading_notes(loading),
            *unmoved_notes(targets),
            *rounding_notes(plan, targets),
        ),
        loading=loading,
        plan=plan_summary(plan, targets),
    )


def _run(
    plan: Plan,
    targets: Sequence[Target],
    tasks: Sequence[ShardTask],
    loading: LoadingRequest,
    writing: Writing,
) -> tuple[list[ShardReport], LoadingCheck | None]:
    pending = [target for target in targets if not target.is_done]

    def begin_all() -> None:
        if writing.exported is not None:
            writing.exported.write()
        begin(plan, pending, overwrite=writing.overwrite)

    if not pending:
        begin_all()
        return [], None
    num_bytes = sum(task.shard.input_bytes for task in tasks)
    bar = writing.progress.start("Extrapolating shards", num_bytes, "B")
    try:
        return run_tasks(
            tasks,
            address=writing.address,
            loading=loading,
            check=plan_check(plan, [target.folder for target in pending]),
            begin=begin_all,
            advance=bar.advance,
            running_bytes=_running_bytes(plan, pending),
        )
    finally:
        bar.close()


def _running_bytes(plan: Plan, pending: Sequence[Target]) -> Callable[[], int]:
    # Tasks on other machines report nothing before they end, but their files can be seen growing.
    ratio = plan.input_bytes / max(1, plan.file_bytes * len(pending))
    return lambda: int(ratio * sum(written_bytes(target.folder) for target in pending))


def _collect(targets: Sequence[Target], tasks: Sequence[ShardTask], report: ShardReport) -> None:
    task = next(task for task in tasks if task.shard.name == report.shard_name)
    by_folder = {str(target.folder): target for target in targets}
    for output, receipt in zip(task.outputs, report.receipts, strict=True):
        by_folder[output.folder].receipts[receipt.name] = receipt


def _finish(
    plan: Plan,
    target: Target,
    attachments: Attachments,
    loading: LoadingCheck | None,
    allow: dict[str, bool],
) -> OutputResult:
    if target.is_done:
        digest = str(read_record(target.folder)["weights_digest"])
        status = "skipped"
    else:
        try:
            digest = assemble(
                plan,
                folder=target.folder,
                alpha=target.alpha,
                at_step=target.at_step,
                direction=target.direction,
                resolution=target.resolution,
                plan_digest=target.plan_digest,
                run_token=target.run_token,
                receipts=[target.receipts[shard.name] for shard in plan.shards],
                attachments=attachments,
                loading=loading,
                allow=allow,
            )
        except OSError as error:
            raise ShardError(
                "the output cannot be completed",
                where=target.folder,
                got=error.strerror or error,
                hint="run the same command again, it continues where it stopped",
            ) from error
        remove_work_folder(target.folder)
        status = "resumed" if target.num_resumed else "written"
    return output_result(plan, target, status, digest)
