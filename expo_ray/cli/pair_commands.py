"""`expo-ray evaluate lm-eval`, `open-llm`, `pair`: the harness, and all results of a pair."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from expo_ray.cli.evaluate_tables import render_changes, render_pair, render_scores
from expo_ray.cli.session import AddressOption, OutputFlags, Session


def lm_eval(
    model: Annotated[
        str,
        typer.Argument(help="A checkpoint: path or Hub id; or http://HOST:PORT/v1, by chat alone."),
    ],
    output: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Results and samples, a folder per task.")
    ],
    tasks: Annotated[
        list[str] | None,
        typer.Option(
            "--task",
            metavar="NAME",
            help="Task or group, or the six of a leaderboard: open-llm-v1 (the default), "
            "open-llm-v2; may repeat.",
        ),
    ] = None,
    num_shots: Annotated[
        int | None,
        typer.Option(
            min=0, help="Examples in the prompt; by default the leaderboard's, or the task's own."
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only so many questions of each task.")
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Definitions of further tasks (YAML).")
    ] = None,
    use_chat_template: Annotated[
        bool, typer.Option("--chat-template", help="Ask through the model's chat template.")
    ] = False,
    backend: Annotated[
        str, typer.Option(metavar="NAME", help="hf or vllm, for a checkpoint.")
    ] = "hf",
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 1,
    address: AddressOption = None,
    *,
    shown: OutputFlags,
) -> None:
    """Measure a model by tasks of lm-evaluation-harness, each a Ray task of its own.

    What is measured stays; the same command goes on. `evaluate open-llm` and `compare` read the
    folder.

    Example: expo-ray evaluate lm-eval ./expo --output results/expo --task open-llm-v1
    """
    from expo_ray.evaluation import lm_eval_results

    with Session(**shown) as session:
        result = lm_eval_results(
            model,
            output=output,
            **({"tasks": tasks} if tasks else {}),
            num_shots=num_shots,
            limit=limit,
            include_path=include_path,
            use_chat_template=use_chat_template,
            backend=backend,
            batch_size=batch_size,
            address=address,
            progress=session.progress,
        )
        session.emit(result, lambda console: render_scores(console, result))


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
        session.emit(result, lambda console: render_changes(console, result))


def pair(
    before: Annotated[Path, typer.Argument(help="Folder of the aligned model's results.")],
    after: Annotated[Path, typer.Argument(help="Folder of the extrapolated model's.")],
    output: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Page to write, .html, .md or .csv; may repeat."),
    ] = None,
    card: Annotated[
        Path | None,
        typer.Option(metavar="CHECKPOINT", help="Put the table into this model card too."),
    ] = None,
    *,
    shown: OutputFlags,
) -> None:
    """All that was measured of a pair on one page: every benchmark, length and throughput.

    A folder holds what the commands wrote for one model: the JSON of `evaluate alpaca-eval` and
    `mt-bench`, results of lm-evaluation-harness, summary.json of load tests. Results of different
    judges, sampling, chat templates or weights are refused.

    Example: expo-ray evaluate pair results/dpo results/expo --output pair.html
    """
    from expo_ray.reports.pair_page import compare_pair

    with Session(**shown) as session:
        result = compare_pair(before, after, output=output or (), card=card)
        session.emit(result, lambda console: render_pair(console, result))
