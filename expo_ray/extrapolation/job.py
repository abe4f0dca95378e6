"""The whole of one extrapolation of a pair: check, plan, write."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from expo_ray.errors import ConfigError, argument
from expo_ray.extrapolation.outputs.assembly import read_attachments
from expo_ray.extrapolation.outputs.publishing import push_targets
from expo_ray.extrapolation.outputs.results import ExtrapolationResult
from expo_ray.extrapolation.outputs.summaries import described_cluster, dry_result
from expo_ray.extrapolation.outputs.targets import find_targets
from expo_ray.extrapolation.pairing.pair import refuse_equal_weights, refuse_same_checkpoint
from expo_ray.extrapolation.planning.alpha import parse_alphas
from expo_ray.extrapolation.planning.alpha_rules import (
    AlphaRules,
    default_of_rules,
    read_alpha_rules,
    resolve,
)
from expo_ray.extrapolation.planning.mergekit_export import MergekitFile
from expo_ray.extrapolation.planning.plan import DEFAULT_SHARD_SIZE, build_plan
from expo_ray.extrapolation.writing import Writing, write_outputs
from expo_ray.progress import NullProgress, Progress


def extrapolate(
    initial: str | Path,
    aligned: str | Path,
    output: str | Path,
    *,
    alpha: float | str | Sequence[float | str] = (),
    output_dtype: str = "auto",
    max_shard_size: str | int = DEFAULT_SHARD_SIZE,
    vocab_policy: str = "refuse",
    alpha_rules: str | Path | AlphaRules | None = None,
    transforms: Sequence[str] = (),
    onto: str | Path | None = None,
    extra_tensors: Sequence[str] = (),
    export_mergekit: str | Path | None = None,
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
    """Write aligned + alpha * (aligned - initial) as a loadable checkpoint.

    A run that was interrupted continues when it is started again with the same arguments.

    Args:
        initial: The model before alignment (SFT): a folder, s3://, gs://,
            hf://owner/name[@revision] or a bare Hub id.
        aligned: The model after alignment (DPO, RLHF), named like initial.
        output: Folder, or s3:// or gs:// prefix, to write; with several alphas one folder
            `alpha-A` per alpha inside it, all from one read of the inputs.
        alpha: One number or several. Under `alpha_rules` at most one, for tensors without a rule.
        output_dtype: auto (each aligned tensor's own, FP8 with block scales included),
            bfloat16, float16 or float32.
        max_shard_size: Limit of a weight file: 5GB, 500MB, 2GiB.
        vocab_policy: refuse, common-rows or copy-aligned, for vocabularies that differ; see
            `expo_ray.extrapolation.pairing.vocabulary`.
        alpha_rules: YAML file of globs and depth ramps; one checkpoint comes out, in `output`.
        transforms: Of delta, in order: `dare:drop=0.9,seed=1`, `magnitude:keep=0.2`,
            `svd:rank=16`, `clip:norm=0.1`; see `expo_ray.extrapolation.arithmetic.transforms`.
        onto: Add alpha * (aligned - initial) to this checkpoint of the same family instead of to
            aligned; the output has its names, dtypes, config and tokenizer.
        extra_tensors: `copy:PATTERN` (a glob), for tensors that one side lacks: copied where the
            output has them, left out and named where only initial does.
        export_mergekit: File that gets the plan as a mergekit configuration, also in a dry run.
        push_to: Hub id, owner/name, that gets the finished checkpoint; with several alphas each
            has a repository of its own, owner/name-alpha-A.
        private: Make these repositories private.
        allow_nonfinite: Go on where an input holds NaN or infinity.
        allow_overflow: Go on where a result does not fit the output dtype.
        overwrite: Replace what the output folder holds.
        dry_run: Only plan; no weights are read, nothing is written.
        nodes: With dry_run, estimate the time on so many nodes.
        node_bandwidth: Bytes per second that each of them reads and writes in all: 2GB.
        address: Ray cluster, `local`, or `inline` for this process. By default `RAY_ADDRESS`, else
            this process, or a local Ray for what takes it longer: transforms, inputs far away, and
            24 GiB and more where there are four cores.
        progress: Where to report.

    Returns:
        What was written, per alpha.

    Raises:
        RequestError: The request was wrong; nothing was written.
        WorkError: The work failed; starting it again continues.

    Example:
        >>> result = expo_ray.extrapolate("sft", "dpo", "sweep", alpha=[0.3, 0.5], address="inline")
        >>> for output in result.outputs:
        ...     print(output.alpha, output.status, output.weights_digest[:7])
        0.3 written blake3:
        0.5 written blake3:
    """
    started = time.monotonic()
    cluster = described_cluster(nodes, node_bandwidth, dry_run=dry_run)
    rules = None if alpha_rules is None else read_alpha_rules(alpha_rules)
    alphas = default_of_rules(alpha) if rules else parse_alphas(alpha)
    plan = build_plan(
        initial,
        aligned,
        output_dtype=output_dtype,
        max_shard_size=max_shard_size,
        vocab_policy=vocab_policy,
        transforms=transforms,
        onto=onto,
        extra_tensors=extra_tensors,
    )
    refuse_same_checkpoint(plan.pair.initial, plan.pair.aligned)
    if plan.transforms and allow_nonfinite:
        raise ConfigError(
            "transforms need finite inputs",
            where=f"{argument('allow_nonfinite')} {argument('transforms')}",
        )
    attachments = read_attachments(plan)
    resolution = None
    if rules:
        resolution = resolve(rules, plan.pair.tensors, default=alphas[0] if alphas else None)
    targets = find_targets(
        plan, output, alphas, attachments, overwrite=overwrite, resolution=resolution
    )
    exported = None
    if export_mergekit is not None:
        only = alphas[0] if not rules and len(alphas) == 1 else None
        exported = MergekitFile.of(export_mergekit, plan, only)
    repos = push_targets(targets, push_to, private=private)
    if dry_run:
        if exported is not None:
            exported.write()
        return dry_result(plan, targets, started, cluster)
    if not all(target.is_done for target in targets):
        refuse_equal_weights(plan.pair)
    writing = Writing(
        started=started,
        allow_nonfinite=allow_nonfinite,
        allow_overflow=allow_overflow,
        overwrite=overwrite,
        exported=exported,
        repos=tuple(repos),
        private=private,
        address=address,
        progress=progress or NullProgress(),
    )
    return write_outputs(plan, targets, attachments, writing)
