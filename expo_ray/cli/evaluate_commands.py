"""`expo-ray evaluate`: one command per benchmark; a new one is a function here and a line below it.

What a benchmark computes lies in `expo_ray.evaluation`, a file for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from expo_ray.cli.model_options import add_command
from expo_ray.cli.options import (
    AlphaOption,
    AlphaRulesOption,
    AnchorsOption,
    CacheFlag,
    EngineOption,
    InitialOption,
    PairAligned,
    PairInitial,
    Replicas,
    RewardModelOption,
    SelfTestFlag,
)
from expo_ray.cli.reward_commands import Replicas as RewardReplicas
from expo_ray.cli.session import AddressOption, OutputFlags, Session, key_value_table, new_table
from expo_ray.errors import ConfigError, argument
from expo_ray.serving.sampling import PAPER_SAMPLING, SAMPLING_PANEL

RunSeed = Annotated[
    int | None,
    typer.Option(min=0, help="Seed of the run; by default 42.", rich_help_panel=SAMPLING_PANEL),
]


def alpaca_eval(
    model: Annotated[
        str | None, typer.Argument(help="Generate this model's official outputs file.")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="A judge's annotations: compute the win rates.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="FILE", help="The 805 instructions.")
    ] = None,
    output: Annotated[
        str | None, typer.Option(metavar="FILE", help="Outputs file to write (JSON).")
    ] = None,
    initial: InitialOption = None,
    alpha: AlphaOption = None,
    alpha_rules: AlphaRulesOption = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Longest response; by default 2048.", rich_help_panel=SAMPLING_PANEL
        ),
    ] = None,
    seed: RunSeed = None,
    engine: EngineOption = "auto",
    num_replicas: Replicas = 1,
    address: AddressOption = None,
    *,
    shown: OutputFlags,
) -> None:
    """AlpacaEval 2.0: write the outputs file for a judge, or read what a judge decided.

    Examples: expo-ray evaluate alpaca-eval ./expo --prompts prompts.jsonl --output outputs.json;
    expo-ray evaluate alpaca-eval --annotations annotations.json
    """
    generating = _beyond_defaults(
        initial=initial,
        alpha=alpha,
        alpha_rules=alpha_rules,
        seed=seed,
        max_tokens=max_tokens,
        address=address,
        engine=engine,
        num_replicas=num_replicas,
    )
    with Session(**shown) as session:
        if annotations is not None:
            from expo_ray.evaluation import alpaca_eval_metrics

            _refuse_unused(
                "reading annotations",
                {"model": model, "prompts": prompts, "output": output, **generating},
            )
            result: dict[str, Any] = dict(alpaca_eval_metrics(annotations))
        elif model is not None and prompts is not None and output is not None:
            from expo_ray.evaluation import alpaca_eval_outputs

            given = {"max_tokens": max_tokens, "seed": seed}
            changes = {name: value for name, value in given.items() if value is not None}
            result = alpaca_eval_outputs(
                model,
                prompts=prompts,
                output=output,
                initial=initial,
                alpha=alpha,
                alpha_rules=alpha_rules,
                engine=engine,
                sampling=PAPER_SAMPLING.model_copy(update=changes),
                num_replicas=num_replicas,
                address=address,
                progress=session.progress,
            )
        else:
            raise ConfigError(
                "nothing to do",
                where="evaluate alpaca-eval",
                expected="--annotations FILE, or MODEL with --prompts and --output",
                hint="see `expo-ray evaluate alpaca-eval --help`",
            )
        session.emit(result, lambda console: console.print(key_value_table(result)))


def reward_bench(
    preferences: Annotated[
        str,
        typer.Argument(
            help="JSONL, JSON, Parquet or CSV with prompt, chosen, rejected and perhaps subset; "
            "hf://datasets/OWNER/NAME too."
        ),
    ],
    reward_model: RewardModelOption,
    initial: PairInitial = None,
    aligned: PairAligned = None,
    self_test: SelfTestFlag = True,
    use_cache: CacheFlag = True,
    num_replicas: RewardReplicas = 1,
    address: AddressOption = None,
    *,
    shown: OutputFlags,
) -> None:
    """How often a reward model ranks the better response above the worse one, with 95% intervals.

    RewardBench's sections and weights where the subsets are its own; RewardBench 2's six subsets
    count alike, its Ties by their own score. A group of several responses is right where every
    chosen one is above every rejected one; equal scores are wrong.

    Example: expo-ray evaluate reward-bench hf://datasets/allenai/reward-bench#split=filtered
    --reward-model ./rm
    """
    from expo_ray.evaluation import reward_bench_accuracy

    with Session(**shown) as session:
        result = reward_bench_accuracy(
            preferences,
            reward_model=reward_model,
            initial=initial,
            aligned=aligned,
            self_test=self_test,
            use_cache=use_cache,
            num_replicas=num_replicas,
            address=address,
            progress=session.progress,
        )
        session.emit(result, lambda console: _render_accuracies(console, result))


def _beyond_defaults(*, engine: str, num_replicas: int, **given: object) -> dict[str, object]:
    """Return the flags of generation; None for those that have their default."""
    return {
        **given,
        "engine": None if engine == "auto" else engine,
        "num_replicas": None if num_replicas == 1 else num_replicas,
    }


def _refuse_unused(what: str, given: Mapping[str, object]) -> None:
    """Let a command pass that has no flags of another of its uses.

    Args:
        what: What it was called for.
        given: Values of the flags of its other uses, by their names in Python.

    Raises:
        ConfigError: One is given.
    """
    named = [name for name, value in given.items() if value is not None]
    if named:
        raise ConfigError(
            f"{what} does not use this",
            where=argument(named[0]),
            got=str(given[named[0]]),
            hint="leave it out",
        )


def mt_bench(
    model: Annotated[
        str | None, typer.Argument(help="Answer the questions with this model.")
    ] = None,
    questions: Annotated[
        str, typer.Option(metavar="FILE", help="MT-Bench's question.jsonl.")
    ] = "question.jsonl",
    output: Annotated[
        str | None, typer.Option(metavar="FILE", help="Answers or judgements to write (JSONL).")
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Answers to be judged.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(metavar="JUDGE", help="judge:URL#model, which rates them.")
    ] = None,
    judge_prompts: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="By default the official judge_prompts.jsonl, here."),
    ] = None,
    references: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Reference answers: math, reasoning and coding."),
    ] = None,
    initial: InitialOption = None,
    alpha: AlphaOption = None,
    alpha_rules: AlphaRulesOption = None,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            min=1, help="Longest answer; by default 1024.", rich_help_panel=SAMPLING_PANEL
        ),
    ] = None,
    seed: RunSeed = None,
    engine: EngineOption = "auto",
    num_replicas: Replicas = 1,
    address: AddressOption = None,
    *,
    shown: OutputFlags,
) -> None:
    """MT-Bench: answer its questions of two turns, or let a judge rate the answers.

    Files are FastChat's. The judge's key is read from EXPO_RAY_JUDGE_API_KEY.

    Examples: expo-ray evaluate mt-bench ./expo --output answers.jsonl;
    expo-ray evaluate mt-bench --answers answers.jsonl --judge judge:URL#model
    --references gpt-4.jsonl --output judgements.jsonl
    """
    generating = _beyond_defaults(
        initial=initial,
        alpha=alpha,
        alpha_rules=alpha_rules,
        seed=seed,
        max_tokens=max_tokens,
        address=address,
        engine=engine,
        num_replicas=num_replicas,
    )
    judging = {"judge_prompts": judge_prompts, "references": references}
    with Session(**shown) as session:
        if answers is not None and judge is not None and output is not None and model is None:
            from expo_ray.evaluation import mt_bench_scores

            _refuse_unused("judging answers", generating)
            result = mt_bench_scores(
                answers,
                questions=questions,
                judge=judge,
                judge_prompts=judge_prompts or "judge_prompts.jsonl",
                references=references,
                output=output,
                progress=session.progress,
            )
            session.emit(result, lambda console: _render_ratings(console, result))
        elif model is not None and output is not None and answers is None and judge is None:
            from expo_ray.evaluation import mt_bench_answers

            _refuse_unused("answering", judging)
            lengths = {"max_tokens": max_tokens, "seed": seed}
            made = mt_bench_answers(
                model,
                questions=questions,
                output=output,
                initial=initial,
                alpha=alpha,
                alpha_rules=alpha_rules,
                **{name: value for name, value in lengths.items() if value is not None},
                engine=engine,
                num_replicas=num_replicas,
                address=address,
                progress=session.progress,
            )
            session.emit(made, lambda console: console.print(key_value_table(made)))
        else:
            raise ConfigError(
                "nothing to do",
                where="evaluate mt-bench",
                expected="MODEL with --output, or --answers, --judge and --output",
                hint="see `expo-ray evaluate mt-bench --help`",
            )


def open_llm(
    before: Annotated[Path, typer.Argument(help="Results of the aligned model: file or folder.")],
    after: Annotated[Path, typer.Argument(help="Results of the extrapolated model.")],
    *,
    shown: OutputFlags,
) -> None:
    """What extrapolating changes on the Open LLM Leaderboard and any other task, task by task.

    Reads the result files of lm-evaluation-harness, of before version 0.4 and since. The six tasks
    of each leaderboard are named, those of version 1 averaged. Both models must have been measured
    in one way: examples in the prompt, questions, score, version.

    Example: expo-ray evaluate open-llm results/dpo results/expo
    """
    from expo_ray.evaluation import open_llm_changes

    with Session(**shown) as session:
        result = open_llm_changes(before, after)
        session.emit(result, lambda console: _render_changes(console, result))


def reward_self_test(
    reward_model: RewardModelOption,
    initial: PairInitial = None,
    aligned: PairAligned = None,
    anchors: AnchorsOption = None,
    dtypes: Annotated[
        list[str] | None,
        typer.Option(
            "--dtype",
            metavar="DTYPE",
            help="Compute in this dtype; may repeat; by default float32, bfloat16 and float16.",
        ),
    ] = None,
    *,
    shown: OutputFlags,
) -> None:
    """Test a reward model in this process: how far batching moves its scores in each dtype.

    Example: expo-ray evaluate self-test --reward-model ./rm
    """
    from expo_ray.evaluation import reward_self_tests

    with Session(**shown) as session:
        given = {"dtypes": tuple(dtypes)} if dtypes else {}
        result = reward_self_tests(
            reward_model, initial=initial, aligned=aligned, anchors=anchors, **given
        )
        session.emit(result, lambda console: _render_self_tests(console, result))


def _render_accuracies(console: Console, result: dict[str, Any]) -> None:
    table = new_table("accuracy (95% interval)", "share", "low", "high", "pairs", "equal", "errors")
    rows = [*result["subsets"], *result["sections"], result["overall"]]
    for row in rows if len(rows) > 2 else rows[-1:]:
        shares = (row["accuracy"], row["ci_low"], row["ci_high"])
        counts = (row["num_pairs"], row["num_equal"], row["num_errors"])
        table.add_row(
            row["name"],
            *("-" if share is None else f"{share:.1%}" for share in shares),
            *(f"{count:,}" for count in counts),
        )
    console.print(table)
    for section in result["sections"]:
        if section["num_subsets_missing"]:
            console.print(
                f"{section['name']}: {section['num_subsets_missing']} of its subsets are missing",
                markup=False,
            )


def _render_ratings(console: Console, result: dict[str, Any]) -> None:
    table = new_table("rating (95% interval)", "mean", "low", "high", "questions")
    rows = {"first turn": result["first_turn"], "second turn": result["second_turn"]}
    for name, row in {**result["categories"], **rows, "average": result["average"]}.items():
        shares = (row["mean"], row["ci_low"], row["ci_high"])
        numbers = ("-" if share is None else f"{share:.2f}" for share in shares)
        table.add_row(name, *numbers, str(row["num_questions"]))
    console.print(table)
    if result["num_unrated"]:
        console.print(f"without a rating, and left out: {result['num_unrated']}", markup=False)


def _render_changes(console: Console, result: dict[str, Any]) -> None:
    table = new_table("task", "shots", "before", "after", "change (95%)", "verdict")
    for row in (*result["tasks"], *([result["mean"]] if result["mean"] else ())):
        change = f"{100 * row['change']:+.1f}"
        if row["ci_low"] is not None:
            change += f" [{100 * row['ci_low']:+.1f}, {100 * row['ci_high']:+.1f}]"
        table.add_row(
            row["task"],
            "-" if row["num_shots"] is None else str(row["num_shots"]),
            *(f"{100 * row[side]:.1f}" for side in ("before", "after")),
            change,
            row["verdict"],
        )
    console.print(table)
    for note in result["notes"]:
        console.print(note, markup=False)


def _render_self_tests(console: Console, result: dict[str, Any]) -> None:
    headings = ("dtype", "spread in batches", "spread with padding", "anchors right")
    table = new_table(*headings, title=f"Self-test of {result['reward_model']}")
    for row in result["tests"]:
        table.add_row(
            row["dtype"],
            f"{row['batch_spread']:.2g}",
            f"{row['padding_spread']:.2g}",
            f"{row['num_anchors_right']} of {row['num_anchors']}",
        )
    console.print(table)
    for warning in sorted({text for row in result["tests"] for text in row["warnings"]}):
        console.print(f"warning: {warning}", markup=False)


BENCHMARKS: Final[Mapping[str, Callable[..., None]]] = {
    "alpaca-eval": alpaca_eval,
    "reward-bench": reward_bench,
    "mt-bench": mt_bench,
    "open-llm": open_llm,
    "self-test": reward_self_test,
}
"""By the name of the command."""


def evaluations() -> typer.Typer:
    """Return the group of the commands."""
    group = typer.Typer(
        help="Published benchmarks.",
        epilog="Example: expo-ray evaluate alpaca-eval --annotations annotations.json --json",
        no_args_is_help=True,
    )
    for name, command in BENCHMARKS.items():
        add_command(group, command, name=name)
    return group
