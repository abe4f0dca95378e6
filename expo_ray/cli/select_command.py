"""The command that chooses alpha, and how the result of a run is printed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from expo_ray.cli.reward_commands import AnchorsOption, CacheFlag, SelfTestFlag, TruncationFlag
from expo_ray.cli.serving_commands import (
    EngineArgs,
    EngineOption,
    MaxModelLen,
    NumPrompts,
    PromptColumn,
    Prompts,
    Stop,
    Temperature,
    TensorParallel,
    TopK,
    TopP,
)
from expo_ray.cli.session import (
    AddressOption,
    JsonFlag,
    QuietFlag,
    Session,
    VerboseFlag,
    format_bytes,
    key_value_table,
    new_table,
)
from expo_ray.errors import ConfigError
from expo_ray.selection.guard_settings import FIELDS, parse_guards
from expo_ray.serving.sampling import PAPER_SAMPLING

TokensPerSecond = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        help="With --dry-run: what one replica generates, for the time. (default: as measured by "
        "earlier work in the output, else 100)",
        show_default=False,
    ),
]


def select(
    initial: Annotated[str, typer.Argument(help="theta0, the SFT checkpoint.")],
    aligned: Annotated[str, typer.Argument(help="theta1, the DPO or RLHF checkpoint.")],
    prompts: Prompts,
    output: Annotated[str, typer.Option(help="Run directory.")],
    reward_model: Annotated[
        list[str] | None,
        typer.Option(
            help="The first scores, the others guard: a checkpoint, implicit:beta=0.1, "
            "judge:URL#model. (default: implicit:beta=0.1)",
            show_default=False,
        ),
    ] = None,
    alpha: Annotated[
        list[float] | None,
        typer.Option(
            "--alpha",
            "-a",
            help="Candidate, negative ones too; may repeat. (default: 0.1 to 0.5)",
            show_default=False,
        ),
    ] = None,
    strategy: Annotated[
        str,
        typer.Option(
            help="grid: every candidate answers every prompt. expanding: go on beyond the edge "
            "while the best lies there. bracketing: double the largest candidate, then close in "
            "(lightly trained models). racing, alone or as expanding+racing, bracketing+racing: "
            "drop candidates on the way that can hardly be chosen any more."
        ),
    ] = "grid",
    max_alpha: Annotated[
        float, typer.Option(help="How far expanding and bracketing may go.")
    ] = 25.0,
    min_alpha: Annotated[
        float, typer.Option(help="How far backwards where nothing gains; -1 is INITIAL.")
    ] = 0.0,
    adaptive: Annotated[
        int | None,
        typer.Option(
            min=2,
            metavar="TRIALS",
            help="Once an alpha is confirmed, search one for each part of the model (attention "
            "and MLP by depth, embeddings, norms) in so many trials, and compare the best with "
            "the uniform alpha on held-out prompts. Needs expo-ray\\[adaptive].",
        ),
    ] = None,
    allow_unfit: Annotated[
        bool,
        typer.Option(
            "--allow-unfit",
            help="Evaluate a pair that `diagnose` calls unfit, such as unrelated models. (default: "
            "the verdict is keep-aligned, and nothing is generated)",
        ),
    ] = False,
    guard: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Threshold of a guard, NAME=VALUE or NAME=off; may repeat: {', '.join(FIELDS)}."
        ),
    ] = None,
    prompt_column: PromptColumn = None,
    num_prompts: NumPrompts = None,
    heldout_fraction: Annotated[
        float, typer.Option(min=0.01, max=0.99, help="Prompts that only confirm the choice.")
    ] = 0.5,
    keep: Annotated[str, typer.Option(help="Candidate checkpoints to keep: chosen or all.")] = (
        "chosen"
    ),
    preset: Annotated[
        str | None, typer.Option(help="Sampling of the method's authors: paper.")
    ] = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest response. (default: 1024)", show_default=False),
    ] = None,
    num_samples: Annotated[int, typer.Option(min=1, help="Responses per prompt.")] = 1,
    stop: Stop = None,
    engine: EngineOption = "auto",
    max_model_len: MaxModelLen = None,
    tensor_parallel_size: TensorParallel = 1,
    engine_arg: EngineArgs = None,
    replicas: Annotated[int, typer.Option(min=1, help="Replicas of each model.")] = 1,
    seed: Annotated[int, typer.Option(min=0)] = 42,
    self_test: SelfTestFlag = True,
    anchors: AnchorsOption = None,
    cache: CacheFlag = True,
    allow_truncation: TruncationFlag = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print tasks, bytes, memory, replicas, time; do nothing."),
    ] = False,
    tokens_per_second: TokensPerSecond = None,
    address: AddressOption = None,
    json_output: JsonFlag = False,
    verbose: VerboseFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Choose alpha by evidence; alpha 0 is always a candidate.

    Tuning prompts choose, held-out prompts confirm. The verdict may be keep-aligned.

    Examples: expo-ray select ./sft ./dpo --prompts p.jsonl --output run --reward-model ./rm;
    expo-ray select ./sft ./dpo --strategy expanding+racing --num-prompts 1000 --output run
    --prompts hf://datasets/HuggingFaceH4/ultrafeedback_binarized#split=test_gen
    """
    from expo_ray.serving import parse_engine_args
    from expo_ray.workflow.run import select as run_select

    with Session(json_output=json_output, verbose=verbose, quiet=quiet) as session:
        if not dry_run:
            refuse_rate_without_plan(tokens_per_second)
        given = {
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "max_tokens": max_tokens,
            "stop": stop or None,
            "num_samples": num_samples,
            "seed": seed,
        }
        sampling = preset_sampling(preset)
        sampling |= {name: value for name, value in given.items() if value is not None}
        result = run_select(
            initial,
            aligned,
            prompts=prompts,
            output=output,
            reward_models=reward_model or ("implicit:beta=0.1",),
            anchors=anchors,
            alphas=alpha,
            heldout_fraction=heldout_fraction,
            keep=keep,
            strategy=strategy,
            max_alpha=max_alpha,
            min_alpha=min_alpha,
            adaptive=adaptive,
            allow_unfit=allow_unfit,
            guards=parse_guards(guard or ()),
            columns={} if prompt_column is None else {"prompt": prompt_column},
            num_prompts=num_prompts,
            settings={
                "seed": seed,
                "sampling": sampling,
                "generators": {
                    "engine": engine,
                    "num_replicas": replicas,
                    "max_model_len": max_model_len,
                    "tensor_parallel_size": tensor_parallel_size,
                    "engine_args": parse_engine_args(engine_arg or ()),
                },
                "rewarders": {
                    "num_replicas": replicas,
                    "self_test": self_test,
                    "cache": cache,
                    "allow_truncation": allow_truncation,
                },
            },
            dry_run=dry_run,
            tokens_per_second=tokens_per_second,
            address=address,
            progress=session.progress,
        )
        render = render_plan if dry_run else render_result
        session.emit(result, lambda console: render(console, result))


def preset_sampling(preset: str | None) -> dict[str, Any]:
    """Return the sampling settings of a preset, or the defaults of `select`."""
    if preset is None:
        return {"max_tokens": 1024}
    if preset != "paper":
        raise ConfigError("unknown preset", where="--preset", got=preset, expected="paper")
    return PAPER_SAMPLING.model_dump(exclude={"num_samples", "seed"})


def render_result(console: Console, result: dict[str, Any]) -> None:
    """Print the verdict, the candidates and where everything lies."""
    from expo_ray.reports import parts_sentence, summary_rows, verdict_sentence

    if not result["selection"].get("unfit"):
        columns, rows = summary_rows(Path(result["output"]))
        table = new_table(*columns, title="Candidates on the tuning prompts")
        for row in rows:
            table.add_row(*(str(cell) for cell in row))
        console.print(table)
        console.print()
    console.print(verdict_sentence(result["selection"]), markup=False)
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
    table = new_table(*headings, title=f"Plan of {plan['name']}")
    for stage in plan["stages"]:
        sizes = [stage.get(key) for key in ("bytes_in", "bytes_out", "worker_memory_bytes")]
        tasks = stage.get("tasks")
        table.add_row(
            stage["stage"],
            "-" if tasks is None else f"{tasks:,} {stage['unit']}",
            *("-" if size is None else format_bytes(size) for size in sizes),
            str(stage.get("replicas", "-")),
        )
    console.print(table)
    notes = {stage["stage"]: stage.get("note") for stage in plan["stages"]}
    console.print(key_value_table({**notes, "results": plan["output"]}))


def refuse_rate_without_plan(tokens_per_second: float | None) -> None:
    """Check that a rate is not given where nothing is reckoned from it.

    Raises:
        ConfigError: It is.
    """
    if tokens_per_second is not None:
        raise ConfigError(
            "a rate has no effect on a run",
            where="--tokens-per-second",
            got=tokens_per_second,
            hint="leave it out, or add --dry-run",
        )
