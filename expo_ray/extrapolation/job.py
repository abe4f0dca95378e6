"""The whole of one extrapolation: check, plan, claim the outputs, fan out, reassemble."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expo_ray.checkpoints.storage import RECORD_NAME
from expo_ray.errors import ConfigError, PairError
from expo_ray.extrapolation.alpha import checkpoint_name, parse_alphas
from expo_ray.extrapolation.assembly import Attachments, assemble, read_attachments
from expo_ray.extrapolation.fanout import WORKER_MEMORY_BYTES, run_tasks
from expo_ray.extrapolation.loading import LoadingCheck
from expo_ray.extrapolation.pair import Pair
from expo_ray.extrapolation.plan import (
    DEFAULT_SHARD_SIZE,
    OutputShard,
    Plan,
    build_plan,
    input_facts,
    plan_digest,
)
from expo_ray.extrapolation.record import read_record
from expo_ray.extrapolation.results import ExtrapolationResult, OutputResult
from expo_ray.extrapolation.tasks import (
    TASK_MEMORY_BYTES,
    WRITE,
    ShardOutput,
    ShardReceipt,
    ShardReport,
    ShardTask,
)
from expo_ray.extrapolation.ties import same_bytes
from expo_ray.extrapolation.work_folder import (
    OutputState,
    claimed_folder,
    examine_output,
    read_receipt,
    remove_work_folder,
    written_bytes,
)
from expo_ray.progress import NullProgress, Progress

_SAMPLE_BYTES = 64 * 1024
# Room for index, sidecars and record beside the weights.
_SPARE_BYTES = 64 * 1024 * 1024


@dataclass(kw_only=True, slots=True)
class Target:
    """One output checkpoint of a run."""

    alpha: float
    folder: Path
    plan_digest: str
    state: OutputState
    run_token: str = ""
    receipts: dict[str, ShardReceipt] = field(default_factory=dict)
    """Finished shards by name; those found at the start were resumed."""
    num_resumed: int = 0

    @property
    def is_done(self) -> bool:
        """Whether the checkpoint was complete before this run."""
        return self.state is OutputState.COMPLETE


def extrapolate(
    initial: str | Path,
    aligned: str | Path,
    output: str | Path,
    *,
    alpha: float | str | Sequence[float | str],
    output_dtype: str = "auto",
    max_shard_size: str | int = DEFAULT_SHARD_SIZE,
    vocab_policy: str = "refuse",
    alpha_rules: object = None,
    allow_nonfinite: bool = False,
    allow_overflow: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    address: str | None = None,
    progress: Progress | None = None,
) -> ExtrapolationResult:
    """Write aligned + alpha * (aligned - initial) as a loadable checkpoint.

    A run that was interrupted continues when it is started again with the same arguments.

    Args:
        initial: Folder of the model before alignment (SFT).
        aligned: Folder of the model after alignment (DPO, RLHF).
        output: Folder to write; with several alphas one folder `alpha-A` per alpha inside it, all
            from one read of the inputs.
        alpha: One number or several.
        output_dtype: auto (each aligned tensor's own), bfloat16, float16 or float32.
        max_shard_size: Limit of a weight file: 5GB, 500MB, 2GiB.
        vocab_policy: refuse, common-rows or copy-aligned, for vocabularies of two sizes.
        alpha_rules: Not supported yet.
        allow_nonfinite: Go on where an input holds NaN or infinity.
        allow_overflow: Go on where a result does not fit the output dtype.
        overwrite: Replace what the output folder holds.
        dry_run: Only plan; no weights are read, nothing is written.
        address: Ray cluster, `local`, or `inline` for this process.
        progress: Where to report.

    Returns:
        What was written, per alpha.

    Raises:
        RequestError: The request was wrong; nothing was written.
        WorkError: The work failed; starting it again continues.
    """
    started = time.monotonic()
    if alpha_rules is not None:
        raise ConfigError("alpha rules are not supported yet", where="--alpha-rules")
    alphas = parse_alphas(alpha)
    plan = build_plan(
        initial,
        aligned,
        output_dtype=output_dtype,
        max_shard_size=max_shard_size,
        vocab_policy=vocab_policy,
    )
    attachments = read_attachments(plan)
    targets = _find_targets(plan, output, alphas, attachments, overwrite=overwrite)
    if dry_run:
        return _dry_result(plan, targets, started)
    if not all(target.is_done for target in targets):
        _refuse_equal_weights(plan.pair)
        _check_space(plan, targets)
    allow = {"allow_nonfinite": allow_nonfinite, "allow_overflow": allow_overflow}
    with contextlib.ExitStack() as stack:
        for target in targets:
            if not target.is_done:
                _claim(stack, plan, target, overwrite=overwrite)
        tasks = plan_tasks(plan, targets, **allow)
        reports, loading = _run(plan, targets, tasks, address, progress or NullProgress())
        for report in reports:
            _collect(targets, tasks, report)
        outputs = [_finish(plan, t, attachments, loading, allow) for t in targets]
    return ExtrapolationResult(
        outputs=tuple(outputs),
        num_tasks=len(tasks),
        bytes_read=sum(report.bytes_read for report in reports),
        bytes_written=sum(report.bytes_written for report in reports),
        seconds=time.monotonic() - started,
        notes=(*plan.pair.notes, *_loading_notes(loading)),
        loading=loading,
        plan=_summary(plan, targets),
    )


def plan_tasks(
    plan: Plan,
    targets: Sequence[Target],
    *,
    allow_nonfinite: bool = False,
    allow_overflow: bool = False,
) -> list[ShardTask]:
    """Return one task per shard that some target still lacks."""
    tasks = []
    for shard in plan.shards:
        outputs = tuple(
            ShardOutput(
                alpha=target.alpha,
                folder=str(target.folder),
                plan_digest=target.plan_digest,
                run_token=target.run_token,
            )
            for target in targets
            if not target.is_done and shard.name not in target.receipts
        )
        if outputs:
            tasks.append(
                shard_task(
                    plan,
                    shard,
                    WRITE,
                    outputs,
                    allow_nonfinite=allow_nonfinite,
                    allow_overflow=allow_overflow,
                )
            )
    return tasks


def shard_task(
    plan: Plan,
    shard: OutputShard,
    mode: str,
    outputs: tuple[ShardOutput, ...],
    **options: Any,
) -> ShardTask:
    """Return the task for one shard, with the facts of just the input files that it reads."""
    pair = plan.pair
    return ShardTask(
        mode=mode,
        shard=shard,
        initial_uri=pair.initial.uri,
        aligned_uri=pair.aligned.uri,
        initial_files=input_facts(
            pair.initial, {p.initial.file for p in shard.tensors if p.initial}
        ),
        aligned_files=input_facts(pair.aligned, {p.aligned.file for p in shard.tensors}),
        outputs=outputs,
        **options,
    )


def _find_targets(
    plan: Plan,
    output: str | Path,
    alphas: Sequence[float],
    attachments: Attachments,
    *,
    overwrite: bool,
) -> list[Target]:
    text = str(output)
    if "://" in text and not text.startswith("file://"):
        raise ConfigError(
            "this kind of output is not supported yet",
            where="OUTPUT",
            got=text,
            expected="a local folder",
        )
    root = Path(text.removeprefix("file://")).expanduser().absolute()
    digests = attachments.digests()
    targets = []
    for alpha in alphas:
        folder = root if len(alphas) == 1 else root / checkpoint_name(alpha)
        _refuse_input_as_output(plan.pair, folder)
        digest = plan_digest(plan, alpha, digests)
        state = examine_output(folder, digest, overwrite=overwrite)
        targets.append(Target(alpha=alpha, folder=folder, plan_digest=digest, state=state))
    return targets


def _refuse_input_as_output(pair: Pair, folder: Path) -> None:
    for side, checkpoint in (("initial", pair.initial), ("aligned", pair.aligned)):
        source = Path(checkpoint.uri).resolve()
        if folder.resolve() == source or source in folder.resolve().parents:
            raise ConfigError(
                f"the output lies in {side}, which is never written to",
                where="OUTPUT",
                got=folder,
                hint="choose another folder",
            )


def _refuse_equal_weights(pair: Pair) -> None:
    """Stop where both sides hold the same weights; the first differing sample ends the search."""
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


def _check_space(plan: Plan, targets: Sequence[Target]) -> None:
    needed: dict[Path, int] = {}
    for target in targets:
        if target.is_done:
            continue
        present = sum(p.stat().st_size for p in target.folder.glob("*.safetensors"))
        parent = next(p for p in (target.folder, *target.folder.parents) if p.exists())
        needed[parent] = needed.get(parent, 0) + max(0, plan.file_bytes - present)
    for parent, num_bytes in needed.items():
        free_bytes = shutil.disk_usage(parent).free
        if num_bytes + _SPARE_BYTES > free_bytes:
            raise ConfigError(
                "there is not enough room on the disk of the output",
                where=parent,
                got=f"{free_bytes} bytes free",
                expected=f"at least {num_bytes + _SPARE_BYTES} bytes",
            )


def _claim(stack: contextlib.ExitStack, plan: Plan, target: Target, *, overwrite: bool) -> None:
    target.run_token = stack.enter_context(
        claimed_folder(target.folder, target.plan_digest, overwrite=overwrite)
    )
    if not target.run_token:
        target.state = OutputState.COMPLETE
        return
    for shard in plan.shards:
        receipt = read_receipt(target.folder, shard.name, target.plan_digest)
        if receipt is not None:
            target.receipts[shard.name] = receipt
    target.num_resumed = len(target.receipts)


def _run(
    plan: Plan,
    targets: Sequence[Target],
    tasks: Sequence[ShardTask],
    address: str | None,
    progress: Progress,
) -> tuple[list[ShardReport], LoadingCheck | None]:
    pending = [target for target in targets if not target.is_done]
    if not pending:
        return [], None
    bar = progress.start("Extrapolating shards", sum(task.shard.input_bytes for task in tasks), "B")
    try:
        return run_tasks(
            tasks,
            address=address,
            loading_of=plan.pair.aligned.uri,
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
        digest = assemble(
            plan,
            folder=target.folder,
            alpha=target.alpha,
            plan_digest=target.plan_digest,
            receipts=[target.receipts[shard.name] for shard in plan.shards],
            attachments=attachments,
            loading=loading,
            allow=allow,
        )
        remove_work_folder(target.folder)
        status = "resumed" if target.num_resumed else "written"
    return _output(plan, target, status, digest)


def _loading_notes(loading: LoadingCheck | None) -> list[str]:
    if loading is None or loading.status == "loads":
        return []
    names = [*loading.missing, *loading.unexpected]
    detail = loading.note or f"{len(names)} names missing or unexpected, first {names[0]}"
    return [f"trial load by transformers, as for aligned itself: {loading.status} ({detail})"]


def _output(plan: Plan, target: Target, status: str, digest: str | None) -> OutputResult:
    return OutputResult(
        alpha=target.alpha,
        path=str(target.folder),
        status=status,
        weights_digest=digest,
        num_bytes=plan.file_bytes,
        num_shards=len(plan.shards),
        num_shards_resumed=target.num_resumed,
    )


def _summary(plan: Plan, targets: Sequence[Target]) -> dict[str, Any]:
    pending = sum(not target.is_done for target in targets)
    return {
        "num_shards": len(plan.shards),
        "num_tensors": len(plan.pair.tensors),
        "num_parameters": plan.pair.aligned.num_parameters,
        "bytes_in": plan.input_bytes if pending else 0,
        "bytes_out": plan.file_bytes * pending,
        "task_memory_bytes": TASK_MEMORY_BYTES,
        "worker_memory_bytes": WORKER_MEMORY_BYTES,
        "shards": [
            {"name": s.name, "bytes_in": s.input_bytes, "bytes_out": s.data_bytes}
            for s in plan.shards
        ],
    }


def _dry_result(plan: Plan, targets: Sequence[Target], started: float) -> ExtrapolationResult:
    outputs = []
    for target in targets:
        for shard in plan.shards:
            receipt = read_receipt(target.folder, shard.name, target.plan_digest)
            target.num_resumed += receipt is not None
        complete = target.is_done and (target.folder / RECORD_NAME).exists()
        outputs.append(_output(plan, target, "skipped" if complete else "planned", None))
    return ExtrapolationResult(
        outputs=tuple(outputs),
        num_tasks=len(plan_tasks(plan, targets)),
        bytes_read=0,
        bytes_written=0,
        seconds=time.monotonic() - started,
        notes=plan.pair.notes,
        dry_run=True,
        plan=_summary(plan, targets),
    )
