"""Commands on reward models: score, evaluate reward-bench, evaluate self-test."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Console

from expo_ray.cli.options import (
    REWARDS_PANEL,
    AnchorsOption,
    CacheFlag,
    PairAligned,
    PairInitial,
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
            initial=initial,
            aligned=aligned,
            reference=reference,
            self_test=self_test,
            anchors=anchors,
            use_cache=use_cache,
            allow_truncation=allow_truncation,
            num_replicas=num_replicas,
            address=address,
            progress=session.progress,
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
    num_replicas: Replicas = 1,
    address: AddressOption = None,
    *,
    shown: OutputFlags,
) -> None:
    """How often a reward model ranks the better response above the worse one, with 95% intervals.

    RewardBench's sections and weights where the subsets are its own. A group of several responses
    is right where every chosen one is above every rejected one; equal scores are wrong.

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
