"""`expo-ray evaluate`: one command per benchmark; a new one is a function here and a line below it.

What a benchmark computes lies in `expo_ray.evaluation`, a file for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from expo_ray.cli.answer_flags import AnswerFlags
from expo_ray.cli.evaluate_tables import (
    render_accuracies,
    render_ratings,
    render_self_tests,
)
from expo_ray.cli.model_options import Given, add_command
from expo_ray.cli.options import (
    AnchorsOption,
    CacheFlag,
    PairAligned,
    PairInitial,
    RewardModelOption,
    SelfTestFlag,
)
from expo_ray.cli.pair_commands import lm_eval, open_llm, pair
from expo_ray.cli.reward_commands import Replicas as RewardReplicas
from expo_ray.cli.session import AddressOption, OutputFlags, Session, key_value_table
from expo_ray.errors import ConfigError, argument
from expo_ray.serving.sampling import PAPER_SAMPLING

JudgeOption = Annotated[
    str | None,
    typer.Option(
        metavar="JUDGE",
        help="judge:URL#model, which judges them; its key is read from EXPO_RAY_JUDGE_API_KEY.",
    ),
]


def alpaca_eval(
    model: Annotated[
        str | None, typer.Argument(help="Generate this model's official outputs file.")
    ] = None,
    prompts: Annotated[
        str | None, typer.Option(metavar="FILE", help="The 805 instructions.")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Outputs or annotations to write (JSON)."),
    ] = None,
    answers: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Outputs to be judged.")
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Outputs that they are compared with, as official."),
    ] = None,
    judge: JudgeOption = None,
    annotator: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="How it is asked: an evaluator of alpaca_eval; by default AlpacaEval 2.0's, which "
            "needs log probabilities.",
        ),
    ] = None,
    annotations: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A judge's annotations: compute the win rates."),
    ] = None,
    length_control: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where df_gamed.csv of the dataset tatsu-lab/alpaca_eval lies: the "
            "length-controlled win rate too.",
        ),
    ] = None,
    *,
    answering: AnswerFlags,
    shown: OutputFlags,
) -> None:
    """AlpacaEval 2.0: write the outputs file, let a judge annotate it, or read annotations.

    Examples: expo-ray evaluate alpaca-eval ./expo --prompts prompts.jsonl --output outputs.json;
    expo-ray evaluate alpaca-eval --answers outputs.json --baseline gpt4.json
    --judge judge:URL#model --output annotations.json;
    expo-ray evaluate alpaca-eval --annotations annotations.json
    """
    from expo_ray import evaluation

    asking = {"prompts": prompts, "model": model, **answering}
    judging = {"answers": answers, "baseline": baseline, "judge": judge, "annotator": annotator}
    with Session(**shown) as session:
        result: dict[str, Any]
        if annotations is not None:
            _refuse_unused("reading annotations", {"output": output, **judging, **asking})
            result = dict(
                evaluation.alpaca_eval_metrics(annotations, length_control=length_control)
            )
        elif answers and baseline and judge and output:
            _refuse_unused("judging", asking)
            result = dict(
                evaluation.alpaca_eval_judgements(
                    answers,
                    baseline=baseline,
                    judge=judge,
                    output=output,
                    length_control=length_control,
                    **({} if annotator is None else {"annotator": annotator}),
                    progress=session.progress,
                )
            )
        elif model and prompts and output:
            _refuse_unused("answering", {"length_control": length_control, **judging})
            changes: Given = {
                name: answering.pop(name) for name in ("max_tokens", "seed") if name in answering
            }
            result = evaluation.alpaca_eval_outputs(
                model,
                prompts=prompts,
                output=output,
                sampling=PAPER_SAMPLING.model_copy(update=changes),
                **answering,
                progress=session.progress,
            )
        else:
            raise ConfigError(
                "nothing to do",
                where="evaluate alpaca-eval",
                expected="--annotations FILE; or --answers, --baseline, --judge and --output; or "
                "MODEL with --prompts and --output",
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
        session.emit(result, lambda console: render_accuracies(console, result))


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
    judge: JudgeOption = None,
    judge_prompts: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="By default the official judge_prompts.jsonl, here."),
    ] = None,
    references: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Reference answers: math, reasoning and coding."),
    ] = None,
    *,
    answering: AnswerFlags,
    shown: OutputFlags,
) -> None:
    """MT-Bench: answer its questions of two turns, or let a judge rate the answers.

    Files are FastChat's.

    Examples: expo-ray evaluate mt-bench ./expo --output answers.jsonl;
    expo-ray evaluate mt-bench --answers answers.jsonl --judge judge:URL#model
    --references gpt-4.jsonl --output judgements.jsonl
    """
    judging = {"judge_prompts": judge_prompts, "references": references}
    with Session(**shown) as session:
        if answers is not None and judge is not None and output is not None and model is None:
            from expo_ray.evaluation import mt_bench_scores

            _refuse_unused("judging answers", answering)
            result = mt_bench_scores(
                answers,
                questions=questions,
                judge=judge,
                judge_prompts=judge_prompts or "judge_prompts.jsonl",
                references=references,
                output=output,
                progress=session.progress,
            )
            session.emit(result, lambda console: render_ratings(console, result))
        elif model is not None and output is not None and answers is None and judge is None:
            from expo_ray.evaluation import mt_bench_answers

            _refuse_unused("answering", judging)
            made = mt_bench_answers(
                model,
                questions=questions,
                output=output,
                **answering,
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

    A check is tried on right and wrong answers: of its kind or, where only you know them, of
    --anchors.

    Example: expo-ray evaluate self-test --reward-model ./rm
    """
    from expo_ray.evaluation import reward_self_tests

    with Session(**shown) as session:
        given = {"dtypes": tuple(dtypes)} if dtypes else {}
        result = reward_self_tests(
            reward_model, initial=initial, aligned=aligned, anchors=anchors, **given
        )
        session.emit(result, lambda console: render_self_tests(console, result))


BENCHMARKS: Final[Mapping[str, Callable[..., None]]] = {
    "alpaca-eval": alpaca_eval,
    "reward-bench": reward_bench,
    "mt-bench": mt_bench,
    "lm-eval": lm_eval,
    "open-llm": open_llm,
    "pair": pair,
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
