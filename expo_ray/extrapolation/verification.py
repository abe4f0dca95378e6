"""Verification: every file against its receipt, every weight against the inputs, bit for bit."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from expo_ray.checkpoints.digests import ALGORITHM, WeightsDigest
from expo_ray.checkpoints.storages.remote_path import AnyPath, any_path
from expo_ray.checkpoints.storages.storage import RECORD_NAME
from expo_ray.errors import CheckpointError, ConfigError, PairError, VerifyError, argument
from expo_ray.extrapolation.nodes.fanout import run_tasks
from expo_ray.extrapolation.outputs.output_checks import (
    check_files,
    check_structure,
    file_problem,
    hash_files,
    sha256_of_files,
)
from expo_ray.extrapolation.outputs.record import (
    digest_algorithm,
    is_as_sealed,
    parse_record,
    read_record_bytes,
)
from expo_ray.extrapolation.outputs.results import VerifyResult
from expo_ray.extrapolation.planning.plan import Plan, build_plan
from expo_ray.extrapolation.shards.tasks import (
    COMPARE,
    Problem,
    ShardOutput,
    ShardReceipt,
    shard_task,
)
from expo_ray.extrapolation.trajectories.recorded import (
    recorded_direction,
    recorded_plan,
    takes_weights_on_trust,
)
from expo_ray.extrapolation.trajectories.trajectory import label_of
from expo_ray.extrapolation.trajectories.trajectory_file import TrajectorySource
from expo_ray.progress import NullProgress, Progress

_MAX_LISTED = 10
_ON_TRUST = (
    "the weights of the checkpoints in each tensor are those of the record: that this fit gives "
    "them was not recomputed (it takes another pass over all checkpoints)"
)
_ROLES = ("initial", "aligned", "onto")


def verify(
    output: str | Path,
    *,
    initial: str | Path | None = None,
    aligned: str | Path | None = None,
    onto: str | Path | None = None,
    trajectory: TrajectorySource | None = None,
    recompute: bool = True,
    sha256: bool = False,
    address: str | None = None,
    progress: Progress | None = None,
) -> VerifyResult:
    """Check a complete output against its record and its inputs.

    Args:
        output: Folder of the checkpoint.
        initial: Where initial lies now; by default where the record says.
        aligned: Where aligned lies now; by default where the record says.
        onto: Where the base lies now, of an output that was written onto one.
        trajectory: Where the checkpoints lie now, of an output that was written along one: the
            same steps, as for `extrapolate_trajectory`.
        recompute: Compute all weights again and compare them; False checks digests only.
        sha256: Give what `sha256sum` prints for every file too; reads them once more.
        address: As for `extrapolate`.
        progress: Where to report.

    Returns:
        What was checked, without problems.

    Raises:
        CheckpointError: The output is not complete, or an input is missing.
        ConfigError: An input is named that the checkpoint was written without.
        VerifyError: Something differs, or a record contradicts its own fit; it names the file and
            the tensor.

    Example:
        >>> _ = expo_ray.extrapolate("sft", "dpo", "expo", alpha=0.3, address="inline")
        >>> verified = expo_ray.verify("expo", address="inline")
        >>> verified.alpha, verified.recomputed, verified.problems
        (0.3, True, ())
    """
    started = time.monotonic()
    folder = any_path(str(output))
    data = read_record_bytes(folder)
    record = parse_record(data, where=str(folder / RECORD_NAME))
    if not is_as_sealed(data, record):
        raise VerifyError(
            "the record of the checkpoint is not what was written",
            where=folder / RECORD_NAME,
            expected="the digest of its own text in its last field",
            hint=f"do not trust it: write it again with extrapolate {argument('overwrite', True)}",
        )
    problems = check_files(folder, record)
    problems += check_structure(folder, record)
    present = [
        entry
        for entry in record["files"]
        if entry["kind"] == "weights" and (folder / entry["name"]).exists()
    ]
    changed = ""
    if recompute:
        given = {"initial": initial, "aligned": aligned, "onto": onto}
        plan = _recorded_plan(record, given, trajectory)
        is_elsewhere = any(given.values()) or trajectory is not None
        changed = "" if is_elsewhere else _describe_changes(record, plan)
        receipts = _recompute(folder, record, plan, present, address, progress or NullProgress())
        if digest_algorithm(record) != ALGORITHM:
            found = hash_files(folder, record, present, NullProgress())
            problems_of = {receipt.name: receipt.problems for receipt in receipts}
            receipts = [replace(r, problems=problems_of.get(r.name, ())) for r in found]
    else:
        receipts = hash_files(folder, record, present, progress or NullProgress())
    intact = not problems
    problems += _check_receipts(record, receipts)
    if problems and recompute and intact:
        # Whose fault is it? Where the files are as recorded, these are not the inputs they
        # came from.
        as_they_lie = hash_files(folder, record, present, NullProgress())
        if not _check_receipts(record, as_they_lie):
            raise _other_inputs(folder, record, problems, changed)
    if problems:
        raise _error(folder, problems, changed)
    return VerifyResult(
        path=str(folder),
        alpha=record["alpha"],
        weights_digest=record["weights_digest"],
        num_files=len(record["files"]),
        num_tensors=len(record["tensors"]),
        num_bytes=sum(receipt.num_bytes for receipt in receipts),
        recomputed=recompute,
        sha256=sha256_of_files(folder, record, progress or NullProgress()) if sha256 else {},
        notes=(_ON_TRUST,) if recompute and takes_weights_on_trust(record) else (),
        seconds=time.monotonic() - started,
    )


def _recorded_plan(
    record: dict[str, Any],
    given: Mapping[str, str | Path | None],
    trajectory: TrajectorySource | None,
) -> Plan:
    options = record["options"]
    if (path := record.get("trajectory")) is not None:
        return _same_layout(record, _path_plan(record, path, given, trajectory))
    if trajectory is not None:
        raise ConfigError(
            "the checkpoint was written without such an input",
            where=argument("trajectory"),
            hint=f"it was written from a pair: give {argument('initial')} and "
            f"{argument('aligned')}, or leave {argument('trajectory')} out",
        )
    for side, address in given.items():
        if address and side not in record:
            raise ConfigError(
                "the checkpoint was written without such an input",
                where=argument(side),
                got=address,
                hint=f"leave {argument(side)} out",
            )
    inputs = {side: given[side] or record[side]["uri"] for side in given if side in record}
    try:
        plan = build_plan(
            inputs["initial"],
            inputs["aligned"],
            onto=inputs.get("onto"),
            output_dtype=options["output_dtype"],
            max_shard_size=options["max_shard_bytes"],
            vocab_policy=options["vocab_policy"],
            transforms=options.get("transforms", ()),
            extra_tensors=options.get("extra_tensors", ()),
        )
    except CheckpointError as error:
        sides = ", ".join(map(argument, inputs))
        hints = (error.told("hint"), f"say with {sides} where the inputs lie now")
        error.tell("hint", "; or ".join(filter(None, hints)))
        raise
    return _same_layout(record, plan)


def _path_plan(
    record: dict[str, Any],
    path: Mapping[str, Any],
    given: Mapping[str, str | Path | None],
    trajectory: TrajectorySource | None,
) -> Plan:
    moved = [side for side in ("initial", "aligned") if given[side]]
    if moved or (given["onto"] and "onto" not in record):
        raise ConfigError(
            "the checkpoint was written without such an input",
            where=argument(moved[0] if moved else "onto"),
            got=given[moved[0] if moved else "onto"],
            hint=f"it was written along a trajectory: {argument('trajectory')} says where its "
            "checkpoints lie now",
        )
    try:
        return recorded_plan(record, path, trajectory, onto=given["onto"])
    except CheckpointError as error:
        hints = (error.told("hint"), f"say with {argument('trajectory')} where the inputs lie now")
        error.tell("hint", "; or ".join(filter(None, hints)))
        raise


def _same_layout(record: dict[str, Any], plan: Plan) -> Plan:
    weights = {entry["name"] for entry in record["files"] if entry["kind"] == "weights"}
    names = {name for pair in plan.pair.tensors for name, _, _ in pair.outputs}
    if names != set(record["tensors"]) or weights != {shard.name for shard in plan.shards}:
        raise PairError(
            "these inputs do not give this output: names or layout differ",
            where=plan.pair.aligned.uri,
            got=f"{len(names)} tensors in {len(plan.shards)} files",
            expected=f"{len(record['tensors'])} tensors in {len(weights)} files",
            hint=f"give the inputs of the record: {_inputs_of(record)}",
        )
    return plan


def _describe_changes(record: dict[str, Any], plan: Plan) -> str:
    path = record.get("trajectory") or {"checkpoints": []}
    files = {label_of(row["step"]): row["files"] for row in path["checkpoints"]}
    files |= {side: record[side]["files"] for side in _ROLES if side in record}
    sides = plan.pair.sides.items()
    changed = [s for s, checkpoint in sides if checkpoint.identity() != files[s]]
    if not changed:
        return ""
    return f"{' and '.join(changed)} changed after the output was written"


def _recompute(
    folder: AnyPath,
    record: dict[str, Any],
    plan: Plan,
    present: Sequence[dict[str, Any]],
    address: str | None,
    progress: Progress,
) -> list[ShardReceipt]:
    direction = recorded_direction(record)
    names = {entry["name"] for entry in present}
    rows = record["tensors"].items()
    output = ShardOutput(
        alpha=record["alpha"],
        folder=str(folder),
        plan_digest="",
        tensor_alphas={name: row["alpha"] for name, row in rows if row.get("alpha") is not None},
    )
    tasks = [
        shard_task(
            plan,
            shard,
            COMPARE,
            (output,),
            directions=() if direction is None else (direction,),
            allow_nonfinite=True,
            allow_overflow=True,
        )
        for shard in plan.shards
        if shard.name in names
    ]
    bar = progress.start("Verifying weights", sum(t.shard.input_bytes for t in tasks), "B")
    try:
        reports, _ = run_tasks(tasks, address=address, advance=bar.advance)
    finally:
        bar.close()
    return [receipt for report in reports for receipt in report.receipts]


def _check_receipts(record: dict[str, Any], receipts: Sequence[ShardReceipt]) -> list[Problem]:
    problems: list[Problem] = []
    digest = WeightsDigest(digest_algorithm(record))
    expected = {entry["name"]: entry["digest"] for entry in record["files"]}
    for receipt in receipts:
        found = list(receipt.problems)
        named = {problem.tensor for problem in found}
        for name, facts in receipt.tensors.items():
            digest.add_digest(name, facts["digest"], facts["dtype"], facts["shape"])
            recorded = record["tensors"].get(name, {}).get("digest")
            if facts["digest"] != recorded and name not in named:
                found.append(
                    Problem(
                        file=receipt.name,
                        tensor=name,
                        message="the weights differ from the record",
                        got=facts["digest"],
                        expected=str(recorded),
                    )
                )
        if receipt.digest != expected[receipt.name] and not found:
            found.append(
                file_problem(
                    receipt.name, "the content differs", receipt.digest, expected[receipt.name]
                )
            )
        problems += found
    if receipts and not problems and digest.written() != record["weights_digest"]:
        problems.append(
            file_problem(
                "expo_ray.json",
                "the weights digest differs",
                digest.written(),
                record["weights_digest"],
            )
        )
    return problems


def _inputs_of(record: Mapping[str, Any]) -> str:
    if record.get("trajectory") is not None:
        return argument("trajectory")
    return f"{argument('initial')} and {argument('aligned')}"


def _other_inputs(
    folder: AnyPath, record: Mapping[str, Any], problems: Sequence[Problem], changed: str
) -> VerifyError:
    return VerifyError(
        "these inputs do not give this checkpoint, whose files are as they were recorded",
        where=folder,
        got=_describe(problems),
        expected="the inputs that the record names, unchanged",
        hint=changed or f"check {_inputs_of(record)}: the checkpoint is intact",
    )


def _error(folder: AnyPath, problems: Sequence[Problem], changed: str) -> VerifyError:
    return VerifyError(
        "the checkpoint is not what its record says",
        where=folder,
        got=_describe(problems),
        expected="every file and every weight as recorded",
        hint=changed
        or f"do not use it: write it again with extrapolate {argument('overwrite', True)}",
    )


def _describe(problems: Sequence[Problem]) -> str:
    lines = []
    for problem in problems[:_MAX_LISTED]:
        tensor = f", tensor {problem.tensor!r}" if problem.tensor else ""
        lines.append(
            f"{problem.file}{tensor}: {problem.message} "
            f"({problem.got} instead of {problem.expected})"
        )
    if len(problems) > _MAX_LISTED:
        lines.append(f"and {len(problems) - _MAX_LISTED} more")
    return "\n    ".join(lines)
