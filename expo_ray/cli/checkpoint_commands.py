"""Commands on checkpoints: extrapolate, verify, inspect, diagnose."""

from __future__ import annotations

from typing import Annotated, Any, get_args

import typer

from expo_ray.cli.checkpoint_results import (
    render_diagnosis,
    render_doctor,
    render_extrapolation,
    render_inspection,
    render_verification,
)
from expo_ray.cli.model_options import add_command
from expo_ray.cli.options import PAIR_PANEL, ExtraTensors
from expo_ray.cli.session import InlineAddress, NodesAddress, OutputFlags, Session
from expo_ray.cli.trajectory_options import (
    TRAJECTORY_PANEL,
    AtStepOption,
    DiagnosisOption,
    FitOption,
    StartOption,
    TrajectoryOption,
    WeightsOption,
    output_of_path,
    parse_weights,
    refuse_beside,
    refuse_pair,
    require_places,
)
from expo_ray.cli.trajectory_results import judged_trajectory, render_trajectory

Initial = Annotated[
    str, typer.Argument(help="theta0, the SFT checkpoint: path, s3://, gs://, hf:// or Hub id.")
]
Aligned = Annotated[
    str,
    typer.Argument(
        help="theta1, the DPO or RLHF checkpoint, or a LoRA adapter on INITIAL "
        "(ADAPTER#base=BASE: on another model)."
    ),
]
OptionalInitial = Annotated[str | None, *get_args(Initial)[1:]]
OptionalAligned = Annotated[str | None, *get_args(Aligned)[1:]]
PANEL = "Checkpoints"
_DELTA = "What is written"
_PLAN = "Plan and publish"


def register(app: typer.Typer) -> None:
    """Add this module's commands to the tree."""
    add_command(app, extrapolate, panel=PANEL)
    add_command(app, verify, panel=PANEL)
    add_command(app, inspect_, name="inspect", panel=PANEL)
    add_command(app, diagnose, panel=PANEL)
    add_command(app, doctor, panel=PANEL)


def extrapolate(
    initial: OptionalInitial = None,
    aligned: OptionalAligned = None,
    output: Annotated[
        str | None, typer.Argument(help="Folder, s3:// or gs:// prefix to write.")
    ] = None,
    alpha: Annotated[
        list[float] | None,
        typer.Option(
            "--alpha",
            "-a",
            help="How far beyond ALIGNED, in units of delta; may repeat: OUTPUT/alpha-0.3/, ... "
            "from one read.",
        ),
    ] = None,
    alpha_rules: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="YAML: an alpha for each part of the model; --alpha is of the rest.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print tasks, bytes and memory; write nothing.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what another request left in OUTPUT.")
    ] = False,
    output_dtype: Annotated[
        str,
        typer.Option(
            metavar="DTYPE",
            help="auto (each tensor's own), bfloat16, float16 or float32.",
            rich_help_panel=_DELTA,
        ),
    ] = "auto",
    max_shard_size: Annotated[
        str,
        typer.Option(metavar="SIZE", help="Largest output file.", rich_help_panel=_DELTA),
    ] = "5GB",
    transforms: Annotated[
        list[str] | None,
        typer.Option(
            "--transform",
            metavar="NAME:K=V",
            help="Transform delta first, in the order given: magnitude:keep=0.2, "
            "dare:drop=0.9,seed=1, svd:rank=16, clip:norm=0.1.",
            rich_help_panel=_DELTA,
        ),
    ] = None,
    onto: Annotated[
        str | None,
        typer.Option(
            metavar="BASE",
            help="Add alpha * delta to this checkpoint of the same family instead of ALIGNED.",
            rich_help_panel=_DELTA,
        ),
    ] = None,
    trajectory: TrajectoryOption = None,
    fit: FitOption = None,
    at_step: AtStepOption = None,
    start: StartOption = None,
    weights: WeightsOption = None,
    diagnosis: DiagnosisOption = None,
    allow_overflow: Annotated[
        bool,
        typer.Option(
            "--allow-overflow",
            help="Go on where the result overflows its dtype.",
            rich_help_panel=_DELTA,
        ),
    ] = False,
    vocab_policy: Annotated[
        str,
        typer.Option(
            metavar="POLICY",
            help="Where vocabularies differ: refuse, common-rows (token by token) or copy-aligned.",
            rich_help_panel=PAIR_PANEL,
        ),
    ] = "refuse",
    extra_tensors: ExtraTensors = None,
    allow_nonfinite: Annotated[
        bool,
        typer.Option(
            "--allow-nonfinite",
            help="Go on where an input holds NaN or infinity.",
            rich_help_panel=PAIR_PANEL,
        ),
    ] = False,
    nodes: Annotated[
        int | None,
        typer.Option(
            help="With --dry-run: estimate the time on so many nodes.", rich_help_panel=_PLAN
        ),
    ] = None,
    node_bandwidth: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            help="With --nodes: bytes a node reads and writes per second, such as 2GB.",
            rich_help_panel=_PLAN,
        ),
    ] = None,
    export_mergekit: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Also write the plan for mergekit; with --dry-run only that.",
            rich_help_panel=_PLAN,
        ),
    ] = None,
    push_to: Annotated[
        str | None,
        typer.Option(
            metavar="HUB_ID",
            help="Then upload to the Hub with a model card; several alphas go to "
            "HUB_ID-alpha-0.3, ...",
            rich_help_panel=_PLAN,
        ),
    ] = None,
    private: Annotated[
        bool,
        typer.Option(
            "--private",
            help="With --push-to: make the repository private.",
            rich_help_panel=_PLAN,
        ),
    ] = False,
    address: InlineAddress = None,
    *,
    shown: OutputFlags,
) -> None:
    """Write ALIGNED + alpha * (ALIGNED - INITIAL) as a loadable checkpoint.

    A killed command continues when it is run again. Tasks of one output shard each run on the
    nodes of the cluster; the bytes do not depend on how many.

    Inputs are safetensors, pytorch_model.bin or LoRA adapters. Where ALIGNED is FP8 with block
    scales, so is the output, unless --output-dtype names a plain dtype; what that rounding costs
    is measured and told. The output is always safetensors.

    Of the checkpoints of one training, --trajectory FILE takes the place of INITIAL and ALIGNED: a
    fit over all their steps gives a better direction than two of them, and the same alpha.

    Example: expo-ray extrapolate ./sft ./dpo ./expo --alpha 0.3
    """
    from expo_ray import extrapolation

    with Session(**shown) as session:
        of_path = {
            **{"fit": fit, "at_step": at_step, "start": start, "weights": weights},
            "diagnosis": diagnosis,
        }
        options: dict[str, Any] = {
            "alpha": alpha or (),
            "alpha_rules": alpha_rules,
            "output_dtype": output_dtype,
            "max_shard_size": max_shard_size,
            "transforms": transforms or (),
            "onto": onto,
            "extra_tensors": extra_tensors or (),
            "push_to": push_to,
            "private": private,
            "allow_nonfinite": allow_nonfinite,
            "allow_overflow": allow_overflow,
            "overwrite": overwrite,
            "dry_run": dry_run,
            "nodes": nodes,
            "node_bandwidth": node_bandwidth,
            "address": address,
            "progress": session.progress,
        }
        if trajectory is None:
            refuse_beside("trajectory", of_path, is_needed=True)
            places = {"initial": initial, "aligned": aligned, "output": output}
            done = extrapolation.extrapolate(
                *require_places("extrapolate", **places),
                vocab_policy=vocab_policy,
                export_mergekit=export_mergekit,
                **options,
            )
        else:
            is_given = vocab_policy != "refuse"
            of_pair = {"vocab_policy": is_given, "export_mergekit": export_mergekit}
            refuse_beside("trajectory", of_pair, is_needed=False)
            done = extrapolation.extrapolate_trajectory(
                trajectory,
                output_of_path("extrapolate", initial, aligned, output),
                fit=fit or "line",
                at_step=at_step or (),
                diagnosis=diagnosis,
                start=start or "last",
                weights=parse_weights(weights),
                **options,
            )
        result = done.as_dict()
        session.emit(result, lambda console: render_extrapolation(console, result))


def verify(
    output: Annotated[str, typer.Argument(help="A checkpoint that extrapolate wrote.")],
    initial: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Where INITIAL lies now, if it was moved.")
    ] = None,
    aligned: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Where ALIGNED lies now, if it was moved.")
    ] = None,
    onto: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Where the BASE of --onto lies now, if it was moved."),
    ] = None,
    trajectory: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Where the checkpoints of its trajectory lie now, if they were moved.",
        ),
    ] = None,
    sha256: Annotated[
        bool, typer.Option("--sha256", help="Print what sha256sum would, for every file.")
    ] = False,
    address: InlineAddress = None,
    *,
    shown: OutputFlags,
) -> None:
    """Recompute a written checkpoint from its inputs and compare bit for bit.

    Exit code 1 names the first differing file or tensor.

    Example: expo-ray verify ./expo
    """
    from expo_ray.extrapolation import verify as run_verify

    with Session(**shown) as session:
        result = run_verify(
            output,
            initial=initial,
            aligned=aligned,
            onto=onto,
            trajectory=trajectory,
            sha256=sha256,
            address=address,
            progress=session.progress,
        ).as_dict()
        session.emit(result, lambda console: render_verification(console, result))


def inspect_(
    checkpoint: Annotated[str, typer.Argument(help="A path, URI or Hub id.")],
    *,
    shown: OutputFlags,
) -> None:
    """Show what a checkpoint holds, from its headers alone.

    Example: expo-ray inspect ./dpo
    """
    from expo_ray.extrapolation import inspect_checkpoint

    with Session(**shown) as session:
        result = inspect_checkpoint(checkpoint).as_dict()
        session.emit(
            result,
            lambda console: render_inspection(console, result, every_tensor="verbose" in shown),
        )


def diagnose(
    initial: OptionalInitial = None,
    aligned: OptionalAligned = None,
    trajectory: TrajectoryOption = None,
    output: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Write the diagnosis of a trajectory, a page and its figures.",
            rich_help_panel=TRAJECTORY_PANEL,
        ),
    ] = None,
    strict: Annotated[
        bool,
        typer.Option(
            "--strict", help="Exit with 1 where the pair is not fit, or no fit beats no change."
        ),
    ] = False,
    extra_tensors: ExtraTensors = None,
    address: InlineAddress = None,
    *,
    shown: OutputFlags,
) -> None:
    """Say whether a pair is fit for extrapolation, or how far a training can be forecast.

    Of a pair: how large delta is, and where, beside the published scales (paper section 3); -v
    adds a heat map of delta by layer and module.

    Of a trajectory: how straight its path is, and a back-test. Each fit sees the early part of the
    run and forecasts checkpoints that were withheld; the verdict is up to which horizon which fit
    comes nearer to them than the last checkpoint it knew. Every checkpoint is read once.

    Examples: expo-ray diagnose ./sft ./dpo; expo-ray diagnose --trajectory ./training
    """
    from expo_ray.extrapolation import diagnose as run_diagnose

    with Session(**shown) as session:
        if trajectory is not None:
            refuse_pair(initial, aligned)
            found = judged_trajectory(
                trajectory,
                output=output,
                extra_tensors=extra_tensors or (),
                address=address,
                progress=session.progress,
            )
            session.emit(found, lambda console: render_trajectory(console, found))
            if strict and found["verdict"]["decision"] != "extrapolate":
                raise typer.Exit(1)
            return
        refuse_beside("trajectory", {"output": output}, is_needed=True)
        initial, aligned = require_places("diagnose", initial=initial, aligned=aligned)
        result = run_diagnose(
            initial,
            aligned,
            extra_tensors=extra_tensors or (),
            address=address,
            progress=session.progress,
        ).as_dict()
        session.emit(
            result,
            lambda console: render_diagnosis(console, result, every_layer="verbose" in shown),
        )
        if strict and not result["fit"]:
            raise typer.Exit(1)


def doctor(
    initial: Annotated[
        str | None, typer.Argument(help="A checkpoint that every node must read.")
    ] = None,
    aligned: Annotated[str | None, typer.Argument(help="Another one.")] = None,
    output: Annotated[
        str | None, typer.Argument(help="A folder or prefix that every node must write to.")
    ] = None,
    address: NodesAddress = None,
    *,
    shown: OutputFlags,
) -> None:
    """Examine every node: inputs readable, output shared, versions, disk, memory, clock.

    Exit code 1 where some node could not take part in a run. Nothing is left behind.

    Example: expo-ray doctor ./sft s3://bucket/dpo /shared/expo --address auto
    """
    from expo_ray.extrapolation import doctor as run_doctor

    with Session(**shown) as session:
        result = run_doctor(
            initial, aligned, output, address=address, progress=session.progress
        ).as_dict()
        session.emit(result, lambda console: render_doctor(console, result))
        if not result["ok"]:
            raise typer.Exit(1)
