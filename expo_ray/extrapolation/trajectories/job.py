"""The whole of one extrapolation along a trajectory: check, fit, plan, write."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from expo_ray.checkpoints.opening import open_checkpoint, without_block_scales
from expo_ray.checkpoints.storages.storage import WORK_FOLDER
from expo_ray.errors import ConfigError, argument
from expo_ray.extrapolation.arithmetic.directions import Direction
from expo_ray.extrapolation.arithmetic.transforms import parse_transforms
from expo_ray.extrapolation.nodes.fanout import one_session
from expo_ray.extrapolation.outputs.assembly import read_attachments
from expo_ray.extrapolation.outputs.publishing import push_targets
from expo_ray.extrapolation.outputs.results import ExtrapolationResult
from expo_ray.extrapolation.outputs.summaries import described_cluster, dry_result
from expo_ray.extrapolation.outputs.targets import Target, find_targets
from expo_ray.extrapolation.pairing.extra_tensors import parse_extra_tensors
from expo_ray.extrapolation.pairing.onto import add_onto
from expo_ray.extrapolation.planning.alpha_rules import AlphaRules, read_alpha_rules, resolve
from expo_ray.extrapolation.planning.path import FITTED, LAST
from expo_ray.extrapolation.planning.plan import DEFAULT_SHARD_SIZE, Plan, parse_size
from expo_ray.extrapolation.shards.tasks import MEASURE_PATHS, shard_task
from expo_ray.extrapolation.trajectories.asked import Alphas, Asked, Steps, alpha_of, parse_asked
from expo_ray.extrapolation.trajectories.diagnosis_file import (
    beyond_horizon,
    identity_of,
    read_diagnosis,
)
from expo_ray.extrapolation.trajectories.directions import Fitting, by_tensor
from expo_ray.extrapolation.trajectories.fit_text import parse_fit, require_fit
from expo_ray.extrapolation.trajectories.fits import DEFAULT_OPTIONS, needs_gram
from expo_ray.extrapolation.trajectories.path_plan import known_directions, plan_path
from expo_ray.extrapolation.trajectories.trajectory import (
    Trajectory,
    open_trajectory,
    refuse_unmoved,
)
from expo_ray.extrapolation.trajectories.trajectory_file import TrajectorySource
from expo_ray.extrapolation.writing import Writing, write_outputs
from expo_ray.progress import NullProgress, Progress


def extrapolate_trajectory(
    trajectory: TrajectorySource,
    output: str | Path,
    *,
    fit: str = "line",
    alpha: Alphas = (),
    at_step: Steps = (),
    start: str = LAST,
    weights: Sequence[float] = (),
    diagnosis: str | Path | None = None,
    output_dtype: str = "auto",
    max_shard_size: str | int = DEFAULT_SHARD_SIZE,
    alpha_rules: str | Path | AlphaRules | None = None,
    transforms: Sequence[str] = (),
    onto: str | Path | None = None,
    extra_tensors: Sequence[str] = (),
    push_to: str | None = None,
    private: bool = False,
    allow_nonfinite: bool = False,
    allow_overflow: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    nodes: int | None = None,
    node_bandwidth: str | int | None = None,
    address: str | None = None,
    progress: Progress | None = None,
) -> ExtrapolationResult:
    """Write a linear combination of the checkpoints of one training as a loadable checkpoint.

    From the last checkpoint, `last + alpha * direction`: direction is the change over the whole
    span as a fit sees it, and alpha keeps its meaning. Or the fitted model of a step itself. Every
    byte of the inputs is read once (of `rank1` twice), in memory that does not grow with the
    number of checkpoints. A run that was interrupted continues when it is started again.

    Args:
        trajectory: A YAML list of `{step: 200, checkpoint: PLACE}`, a folder that holds
            `checkpoint-200` and its like, or the list itself.
        output: Folder, or s3:// or gs:// prefix, to write; with several alphas or steps one folder
            `alpha-A` or `step-T` for each inside it, all from one read of the inputs.
        fit: line, rank1, wsm, ema, bema or weights, perhaps with options: `line:window=10`; see
            `expo_ray.extrapolation.trajectories.fits`.
        alpha: One number or several: how far beyond the last checkpoint, in units of the fitted
            change over the whole span.
        at_step: One step or several, in the place of alpha: (step - last) / (last - first); of
            fitted models, the step to fit.
        start: `last`: from the last checkpoint; `fitted`: the fitted model itself.
        weights: Of the fit `weights`: one number for each checkpoint, with sum 1.
        diagnosis: What `diagnose_trajectory` wrote of these checkpoints: where it does not support
            the step or alpha, a note warns.
        output_dtype: As for `extrapolate`.
        max_shard_size: As for `extrapolate`.
        alpha_rules: As for `extrapolate`.
        transforms: As for `extrapolate`, of the direction.
        onto: As for `extrapolate`.
        extra_tensors: As for `extrapolate`.
        push_to: As for `extrapolate`.
        private: As for `extrapolate`.
        allow_nonfinite: As for `extrapolate`.
        allow_overflow: As for `extrapolate`.
        overwrite: As for `extrapolate`.
        dry_run: As for `extrapolate`.
        nodes: As for `extrapolate`.
        node_bandwidth: As for `extrapolate`.
        address: As for `extrapolate`.
        progress: Where to report.

    Returns:
        What was written, per alpha or step.

    Raises:
        RequestError: The request was wrong; nothing was written.
        WorkError: The work failed; starting it again continues.

    Example:
        >>> path = [{"step": 0, "checkpoint": "sft"}, {"step": 100, "checkpoint": "dpo"}]
        >>> result = expo_ray.extrapolate_trajectory(path, "ahead", at_step=150, address="inline")
        >>> for output in result.outputs:
        ...     print(output.at_step, output.alpha, output.status)
        150.0 0.5 written
    """
    started = time.monotonic()
    cluster = described_cluster(nodes, node_bandwidth, dry_run=dry_run)
    rules = None if alpha_rules is None else read_alpha_rules(alpha_rules)
    named, options = parse_fit(fit, weights)
    if start == FITTED and (transforms or onto is not None):
        raise ConfigError(
            "a fitted model has no delta",
            where=f"{argument('start', FITTED)} beside "
            f"{argument('transforms') if transforms else argument('onto')}",
            expected=argument("start", LAST),
        )
    if transforms and allow_nonfinite:
        raise ConfigError(
            "transforms need finite inputs",
            where=f"{argument('allow_nonfinite')} {argument('transforms')}",
        )
    if needs_gram(named) and allow_nonfinite:
        raise ConfigError(
            "a fit by tensor needs finite inputs",
            where=f"{argument('allow_nonfinite')} {argument('fit', named.value)}",
            hint="a scalar product with NaN is NaN: leave the checkpoint out that holds it, or "
            "take a fit whose weights are the same for all tensors, such as line",
        )
    opened = open_trajectory(trajectory, output_dtype=output_dtype, extra_tensors=extra_tensors)
    fitting = Fitting(fit=named, options=options, steps=opened.steps)
    require_fit(named, opened.steps, options)
    asked = parse_asked(opened.steps, named, start=start, alpha=alpha, at_step=at_step, rules=rules)
    pair = opened.pair
    if onto is not None:
        base = without_block_scales(open_checkpoint(onto))
        patterns = parse_extra_tensors(extra_tensors)
        pair = add_onto(pair, base, output_dtype=output_dtype, extra_tensors=patterns)
    directions = known_directions(fitting, asked)
    copied = tuple(tensor.name for tensor in opened.pair.tensors if tensor.initial is None)
    plan = plan_path(pair, fitting, asked, directions, copied, parse_size(max_shard_size))
    plan = replace(
        plan,
        output_dtype=output_dtype,
        transforms=parse_transforms(transforms),
        extra_tensors=tuple(extra_tensors),
    )
    attachments = read_attachments(plan)
    resolution = None
    if rules:
        default = asked.alphas[0] if asked.alphas else None
        resolution = resolve(rules, plan.pair.tensors, default=default)
    if diagnosis is not None:
        alphas = resolution.alphas.values() if resolution else asked.alphas
        warnings = _beyond_horizon(diagnosis, opened, plan, fitting, asked, alphas)
        plan = replace(plan, pair=replace(plan.pair, notes=(*plan.pair.notes, *warnings)))
    targets = find_targets(
        plan,
        output,
        asked.alphas,
        attachments,
        overwrite=overwrite,
        resolution=resolution,
        at_steps=asked.at_steps,
    )
    for target in targets:
        target.direction = directions.get(_key(target, asked))
    repos = push_targets(targets, push_to, private=private)
    if dry_run:
        return dry_result(plan, targets, started, cluster)
    if not all(target.is_done for target in targets):
        refuse_unmoved(opened)
    writing = Writing(
        started=started,
        allow_nonfinite=allow_nonfinite,
        allow_overflow=allow_overflow,
        overwrite=overwrite,
        repos=tuple(repos),
        private=private,
        address=address,
        progress=progress or NullProgress(),
    )

    def fit_tensors(pending: Sequence[Target]) -> int:
        return _fit_tensors(opened, plan, fitting, asked, pending, writing)

    if not fitting.needs_gram or all(target.is_done for target in targets):
        return write_outputs(plan, targets, attachments, writing)
    passes = [shard_task(plan, shard, MEASURE_PATHS, ()) for shard in plan.shards]
    with one_session(address, passes):
        return write_outputs(plan, targets, attachments, writing, prepare=fit_tensors)


def _beyond_horizon(
    diagnosis: str | Path,
    opened: Trajectory,
    plan: Plan,
    fitting: Fitting,
    asked: Asked,
    alphas: Iterable[float],
) -> list[str]:
    """Return warnings about what a diagnosis of these checkpoints does not support."""
    points = [
        (step, checkpoint.uri, identity_of(checkpoint))
        for step, checkpoint in zip(opened.steps, opened.checkpoints, strict=True)
    ]
    found = read_diagnosis(diagnosis, checkpoints=points)
    if asked.start == FITTED:
        horizons = [1.0 + alpha_of(step, opened.steps) for step in asked.at_steps]
    else:
        horizons = sorted({1.0 + alpha for alpha in alphas})
    changes = {
        "with these options": fitting.options != DEFAULT_OPTIONS,
        "with transforms": bool(plan.transforms),
        "onto another base": plan.pair.onto is not None,
    }
    return beyond_horizon(
        found,
        fit=fitting.fit.value,
        start=asked.start,
        horizons=horizons,
        changed_by=" and ".join(words for words, is_changed in changes.items() if is_changed),
    )


def _key(target: Target, asked: Asked) -> float | None:
    return target.at_step if asked.start == FITTED else None


def _fit_tensors(
    opened: Trajectory,
    plan: Plan,
    fitting: Fitting,
    asked: Asked,
    pending: Sequence[Target],
    writing: Writing,
) -> int:
    """Give the targets the directions of all tensors; return the bytes that were read."""
    # A driver that only plans needs no torch.
    from expo_ray.extrapolation.trajectories.gram import measure_gram
    from expo_ray.extrapolation.trajectories.kept_sums import KeptSums

    # Of all tensors, written ones too: their sums are kept, in parts that do not depend on it. The
    # last output is completed last, and its work folder with them.
    kept = KeptSums(pending[-1].folder / WORK_FOLDER, opened)
    tensors = [tensor for tensor in plan.pair.tensors if tensor.path]
    # Under `onto` a tensor has the name of the base, and is measured under that of the path.
    paths = {t.aligned.name: replace(t, onto=None) for t in tensors}
    path = replace(opened, pair=replace(opened.pair, tensors=tuple(paths.values())))
    found = measure_gram(path, address=writing.address, progress=writing.progress, kept=kept)
    grams = {tensor.name: found[tensor.aligned.name] for tensor in tensors}
    directions: dict[float | None, Direction] = {}
    for target in pending:
        key = _key(target, asked)
        if key not in directions:
            directions[key] = by_tensor(fitting, key, grams)
        target.direction = directions[key]
    refs = (ref for tensor in paths.values() for ref in tensor.path)
    return sum(ref.input_bytes(ref.num_elements) for ref in refs) - kept.found_bytes
