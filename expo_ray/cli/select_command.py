"""The command that chooses alpha, and how the result of a run is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from expo_ray.cli.model_options import FlagsOf, Given
from expo_ray.cli.narrow_tables import print_table
from expo_ray.cli.options import (
    AnchorsOption,
    CacheFlag,
    CheckedColumns,
    DryRunFlag,
    EngineFlags,
    EngineOption,
    ExtraTensors,
    NumPrompts,
    Preset,
    PromptColumn,
    Prompts,
    ReasoningOption,
    Replicas,
    SelfTestFlag,
    TokensPerSecond,
    TruncationFlag,
    named_columns,
    preset_sampling,
)
from expo_ray.cli.session import (
    AddressOption,
    OutputFlags,
    Session,
    format_bytes,
    key_value_table,
)
from expo_ray.cli.trajectory_options import (
    AtStepOption,
    FitOption,
    TrajectoryOption,
    WeightsOption,
    parse_weights,
    refuse_beside,
    refuse_pair,
    require_places,
)
from expo_ray.errors import ConfigError, argument
from expo_ray.selection.guard_settings import parse_guards, parse_margins
from expo_ray.selection.settings import SEARCH_PANEL, SelectionSettings
from expo_ray.serving.sampling import SAMPLING_PANEL, SamplingParams


def select(
    initial: Annotated[str | None, typer.Argument(help="theta0, the SFT checkpoint.")] = None,
    aligned: Annotated[
        str | None, typer.Argument(help="theta1, the DPO or RLHF checkpoint.")
    ] = None,
    *,
    prompts: Prompts,
    output: Annotated[str, typer.Option(metavar="DIR", help="Run directory.")],
    reward_models: Annotated[
        list[str] | None,
        typer.Option(
            "--reward-model",
            metavar="MODEL",
            help="The first scores, the others guard; by default implicit:beta=0.1.",
        ),
    ] = None,
    alphas: Annotated[
        list[float] | None,
        typer.Option(
            "--alpha",
            "-a",
            help="Candidate, negative ones too; may repeat; by default 0.1 to 0.5.",
        ),
    ] = None,
    trajectory: TrajectoryOption = None,
    fit: FitOption = None,
    at_step: AtStepOption = None,
    weights: WeightsOption = None,
    dry_run: DryRunFlag = False,
    tokens_per_second: TokensPerSecond = None,
    search: Annotated[Given, FlagsOf(SelectionSettings)],
    adaptive: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="TRIALS",
            help="Then search an alpha for each part of the model; needs expo-ray\\[adaptive].",
            rich_help_panel=SEARCH_PANEL,
        ),
    ] = None,
    keep: Annotated[
        str,
        typer.Option(
            metavar="WHICH",
            help="Candidate checkpoints to keep: chosen or all.",
            rich_help_panel=SEARCH_PANEL,
        ),
    ] = "chosen",
    extra_tensors: ExtraTensors = None,
    allow_unfit: Annotated[
        bool,
        typer.Option(
            "--allow-unfit",
            help="Evaluate a pair that diagnose calls unfit; else the verdict is keep-aligned.",
            rich_help_panel=SEARCH_PANEL,
        ),
    ] = False,
    guards: Annotated[
        list[str] | None,
        typer.Option(
            "--guard",
            metavar="K=V",
            help="Threshold of a guard, such as length-ratio=1.5 or language-drift=off; may "
            "repeat.",
            rich_help_panel=SEARCH_PANEL,
        ),
    ] = None,
    no_worse_than: Annotated[
        list[str] | None,
        typer.Option(
            "--no-worse-than",
            metavar="NAME=X",
            help="Gate: reward model NAME must not lose more than X on held-out prompts "
            "(check:number=0.02); may repeat.",
            rich_help_panel=SEARCH_PANEL,
        ),
    ] = None,
    report_only: Annotated[
        list[str] | None,
        typer.Option(
            "--report-only",
            metavar="NAME",
            help="Reward model NAME, besides the first, decides nothing: what it says is told; may "
            "repeat.",
            rich_help_panel=SEARCH_PANEL,
        ),
    ] = None,
    columns: PromptColumn = None,
    checked_columns: CheckedColumns = None,
    num_prompts: NumPrompts = None,
    heldout_fraction: Annotated[
        float,
        typer.Option(
            min=0.01,
            max=0.99,
            help="Share of the prompts that only confirms the choice.",
            rich_help_panel="Prompts",
        ),
    ] = 0.5,
    preset: Preset = None,
    sampling: Annotated[Given, FlagsOf(SamplingParams, exclude=("seed",))],
    seed: Annotated[
        int,
        typer.Option(min=0, help="Seed of the whole run.", rich_help_panel=SAMPLING_PANEL),
    ] = 42,
    reasoning: ReasoningOption = "auto",
    engine: EngineOption = "auto",
    num_replicas: Replicas = 1,
    options: EngineFlags,
    self_test: SelfTestFlag = True,
    anchors: AnchorsOption = None,
    cache: CacheFlag = True,
    allow_truncation: TruncationFlag = False,
    track: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Log the finished run to this experiment tracker, mlflow or wandb; may repeat.",
        ),
    ] = None,
    address: AddressOption = None,
    shown: OutputFlags,
) -> None:
    """Choose alpha by evidence; alpha 0 is always a candidate.

    Tuning prompts choose, held-out prompts confirm. The verdict may be keep-aligned. Of the
    checkpoints of one training, --trajectory FILE takes the place of INITIAL and ALIGNED.

    Examples: expo-ray select ./sft ./dpo --prompts p.jsonl --output run --reward-model ./rm;
    expo-ray select ./sft ./dpo --strategy expanding+racing --num-prompts 1000 --output run
    --prompts hf://datasets/HuggingFaceH4/ultrafeedback_binarized#split=test_gen
    """
    from expo_ray.workflow.run import select as run_select

    with Session(**shown) as session:
        if trajectory is None:
            of_path = {"fit": fit, "at_step": at_step, "weights": weights}
            refuse_beside("trajectory", of_path, is_needed=True)
            require_places("select", initial=initial, aligned=aligned)
        else:
            refuse_pair(initial, aligned)
        if not dry_run:
            refuse_rate_without_plan(tokens_per_second)
        sampling = {"seed": seed} | preset_sampling(preset) | sampling
        result = run_select(
            initial,
            aligned,
            prompts=prompts,
            output=output,
            trajectory=trajectory,
            fit=fit or "line",
            weights=parse_weights(weights),
            at_step=at_step or (),
            reward_models=reward_models or ("implicit:beta=0.1",),
            anchors=anchors,
            alphas=alphas,
            heldout_fraction=heldout_fraction,
            keep=keep,
            adaptive=adaptive,
            extra_tensors=extra_tensors or (),
            allow_unfit=allow_unfit,
            guards=parse_guards(guards or ()),
            no_worse_than=parse_margins(no_worse_than or ()),
            report_only=report_only or (),
            columns=named_columns(columns, checked_columns),
            num_prompts=num_prompts,
            settings={
                "seed": seed,
                "sampling": sampling,
                "reasoning": reasoning,
                "generators": {"engine": engine, "num_replicas": num_replicas, **options},
                "rewarders": {
                    "num_replicas": num_replicas,
                    "self_test": self_test,
                    "cache": cache,
                    "allow_truncation": allow_truncation,
                },
                "track": track or [],
            },
            dry_run=dry_run,
            tokens_per_second=tokens_per_second,
            address=address,
            progress=session.progress,
            **search,
        )
        render = render_plan if dry_run else render_result
        session.emit(result, lambda console: render(console, result))


def render_result(console: Console, result: dict[str, Any]) -> None:
    """Print the verdict, the candidates and where everything lies."""
    from expo_ray.reports import gate_sentences, parts_sentence, summary_rows, verdict_sentence

    if not result["selection"].get("unfit"):
        columns, rows = summary_rows(Path(result["output"]))
        print_table(
            console,
            columns,
            rows,
            title="Candidates on the tuning prompts",
            droppable=("tokens", "reward", "cut off", "length", "prompts"),
        )
        console.print()
    console.print(verdict_sentence(result["selection"]), markup=False)
    for sentence in gate_sentences(result["selection"]):
        console.print(sentence, markup=False)
    for warning in result["selection"]["warnings"]:
        console.print(f"warning: {warning}", markup=False)
    by_part = parts_sentence(result["selection"])
    if by_part is not None:
        console.print(by_part, markup=False)
    console.print()
    console.print(key_value_table({"report": result["report"], "everything": result["output"]}))
    console.print()
    for step in result["next"]:
        console.print(f"{step['what']}:", style="dim")
        console.print(f"  {step['command']}", soft_wrap=True, markup=False, highlight=False)


def render_plan(console: Console, plan: dict[str, Any]) -> None:
    """Print what a run would do, stage by stage."""
    headings = ("stage", "work", "read", "written", "memory per task", "replicas")
    rows = []
    for stage in plan["stages"]:
        sizes = [stage.get(key) for key in ("bytes_in", "bytes_out", "worker_memory_bytes")]
        tasks = stage.get("tasks")
        rows.append(
            [
                stage["stage"],
                "-" if tasks is None else f"{tasks:,} {stage['unit']}",
                *("-" if size is None else format_bytes(size) for size in sizes),
                str(stage.get("replicas", "-")),
            ]
        )
    print_table(
        console,
        headings,
        rows,
        title=f"Plan of {plan['name']}",
        droppable=("memory per task", "read"),
    )
    notes = {stage["stage"]: stage.get("note") for stage in plan["stages"]}
    notes |= {f"gate {gate['name']}": gate["note"] for gate in plan["gates"]}
    console.print(key_value_table({**notes, "results": plan["output"]}))
    for warning in plan["warnings"]:
        console.print(f"warning: {warning}", markup=False)


def refuse_rate_without_plan(tokens_per_second: float | None) -> None:
    """Check that a rate is not given where nothing is reckoned from it.

    Raises:
        ConfigError: It is.
    """
    if tokens_per_second is not None:
        raise ConfigError(
            "a rate has no effect on a run",
            where=argument("tokens_per_second"),
            got=tokens_per_second,
            hint=f"leave it out, or add {argument('dry_run', True)}",
        )
