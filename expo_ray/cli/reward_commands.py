"""The command that scores responses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console

from expo_ray.cli.options import (
    REWARDS_PANEL,
    AnchorsOption,
    CacheFlag,
    PairAligned,
    PairInitial,
    ReasoningOption,
    RewardEngineOption,
    RewardModelOption,
    SelfTestFlag,
    TruncationFlag,
)
from expo_ray.cli.session import (
    AddressOption,
    OutputFlags,
    Session,
    key_value_table,
    new_table,
)

Replicas = Annotated[
    int,
    typer.Option(
        "--replicas", min=1, help="Replicas of the reward model.", rich_help_panel=REWARDS_PANEL
    ),
]


def score(
    responses: Annotated[
        str,
        typer.Argument(help="A responses table, or a folder of them; large ones are streamed."),
    ],
    reward_model: RewardModelOption,
    output: Annotated[str, typer.Option(metavar="FILE", help="Rewards table to write (Parquet).")],
    engine: RewardEngineOption = "transformers",
    initial: PairInitial = None,
    aligned: PairAligned = None,
    reference: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="For a pairwise model: the responses to compare with, naturally of ALIGNED.",
        ),
    ] = None,
    self_test: SelfTestFlag = True,
    anchors: AnchorsOption = None,
    use_cache: CacheFlag = True,
    allow_truncation: TruncationFlag = False,
    reasoning: ReasoningOption = "auto",
    num_replicas: Replicas = 1,
    address: AddressOption = None,
    *,
    shown: OutputFlags,
) -> None:
    """Score every response by a reward model: raw float32 scores, null where it failed.

    A rerun continues; nothing is scored twice. What the self-test found lies beside the rewards
    (OUTPUT with the suffix .self_test.json).

    Example: expo-ray score responses.parquet --reward-model ./rm --output rewards.parquet
    """
    from expo_ray.serving import score as run_score

    with Session(**shown) as session:
        result = run_score(
            responses,
            reward_model=reward_model,
            output=output,
            engine=engine,
            initial=initial,
            aligned=aligned,
            reference=reference,
            self_test=self_test,
            anchors=anchors,
            use_cache=use_cache,
            allow_truncation=allow_truncation,
            reasoning=reasoning,
            num_replicas=num_replicas,
            address=address,
            progress=session.progress,
        )
        session.emit(result, lambda console: _render(console, result))


def _render(console: Console, result: Mapping[str, Any]) -> None:
    console.print(key_value_table({k: v for k, v in result.items() if k != "samples"}))
    if not result["samples"]:
        return
    table = new_table("of several samples", "mean", "95% interval", "prompts")
    for row in result["samples"]:
        ends = (row["ci_low"], row["ci_high"])
        interval = "-" if None in ends else f"{ends[0]:.3f} to {ends[1]:.3f}"
        mean = "-" if row["mean"] is None else f"{row['mean']:.3f}"
        table.add_row(row["statistic"], mean, interval, str(row["num_prompts"]))
    console.print(table)
