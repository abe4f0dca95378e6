"""Flags that several commands have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from expo_ray.cli.model_options import FlagsOf, Given
from expo_ray.errors import ConfigError, argument
from expo_ray.flags import require_first
from expo_ray.rewards.kinds.registry import reward_forms
from expo_ray.serving.engines.options import ENGINE_PANEL, EngineOptions
from expo_ray.serving.engines.registry import engine_help, reward_engine_help
from expo_ray.serving.sampling import PAPER_SAMPLING, SAMPLING_PANEL
from expo_ray.tables.checked_columns import CHECKED_COLUMNS
from expo_ray.tables.thoughts import REASONING_MEANS

_PROMPTS = "Prompts"
_MODEL = typer.Argument(
    help="A checkpoint: path, s3://, gs://, hf://, Hub id or LoRA adapter; with --initial, the "
    "aligned one."
)
Model = Annotated[str, _MODEL]
OptionalModel = Annotated[str | None, _MODEL]
Prompts = Annotated[
    str,
    typer.Option(
        metavar="FILE",
        help="JSONL, JSON, Parquet or CSV: a file, s3://, gs:// or hf://datasets/OWNER/NAME.",
    ),
]
PromptColumn = Annotated[
    str | None,
    typer.Option(
        "--prompt-column",
        metavar="NAME",
        help="Column of the prompts, where it has another name.",
        rich_help_panel=_PROMPTS,
    ),
]
CheckedColumns = Annotated[
    list[str] | None,
    typer.Option(
        "--checked-column",
        metavar="OURS=NAME",
        help="Column of answer, constraints or tests, where it has another name; may repeat.",
        rich_help_panel=_PROMPTS,
    ),
]
NumPrompts = Annotated[
    int | None,
    typer.Option(
        min=1,
        help="Use so many prompts, drawn at random by --seed.",
        rich_help_panel=_PROMPTS,
    ),
]
InitialOption = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="theta0: use MODEL + alpha * (MODEL - INITIAL), in memory."),
]
AlphaOption = Annotated[
    float | None,
    typer.Option(help="alpha of the live extrapolation; beside --alpha-rules, of the rest."),
]
AlphaRulesOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="YAML: an alpha for each part of the model, as for extrapolate."
    ),
]
PAIR_PANEL = "Pairs that differ"
ExtraTensors = Annotated[
    list[str] | None,
    typer.Option(
        metavar="copy:GLOB",
        help="Let tensors pass that one side lacks: ALIGNED's are copied, INITIAL's left out; may "
        "repeat.",
        rich_help_panel=PAIR_PANEL,
    ),
]
EngineOption = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help=engine_help(),
        rich_help_panel=ENGINE_PANEL,
    ),
]
EngineFlags = Annotated[Given, FlagsOf(EngineOptions)]
Replicas = Annotated[
    int,
    typer.Option("--replicas", min=1, help="Replicas of the model.", rich_help_panel=ENGINE_PANEL),
]
ReasoningOption = Annotated[
    str,
    typer.Option(
        metavar="TAG",
        help=REASONING_MEANS,
        rich_help_panel=SAMPLING_PANEL,
    ),
]
Preset = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="paper: sampling of the method's authors.",
        rich_help_panel=SAMPLING_PANEL,
    ),
]
REWARDS_PANEL = "Reward models"
RewardModelOption = Annotated[
    str,
    typer.Option(metavar="MODEL", help=f"What scores: {reward_forms()}."),
]
RewardEngineOption = Annotated[
    str,
    typer.Option(
        "--engine",
        metavar="NAME",
        help=f"{reward_engine_help()}.",
        rich_help_panel=REWARDS_PANEL,
    ),
]
PairInitial = Annotated[
    str | None,
    typer.Option(
        "--initial",
        metavar="MODEL",
        help="theta0, for the implicit reward of the pair.",
    ),
]
PairAligned = Annotated[
    str | None,
    typer.Option(
        "--aligned",
        metavar="MODEL",
        help="theta1, for the implicit reward of the pair.",
    ),
]
AnchorsOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Preferences that the self-test must rank right, all of them.",
        rich_help_panel=REWARDS_PANEL,
    ),
]
SelfTestFlag = Annotated[
    bool,
    typer.Option(
        "--self-test/--no-self-test",
        help="Test each reward model first; gains below its spread are none.",
        rich_help_panel=REWARDS_PANEL,
    ),
]
CacheFlag = Annotated[
    bool,
    typer.Option(
        "--cache/--no-cache",
        help="Remember scores by content on each node, and look them up.",
        rich_help_panel=REWARDS_PANEL,
    ),
]
TruncationFlag = Annotated[
    bool,
    typer.Option(
        "--allow-truncation",
        help="Cut and mark chats that are too long; else they get no reward.",
        rich_help_panel=REWARDS_PANEL,
    ),
]
OverridesOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="K=V", help="Lay this over a key of the recipe; may repeat."),
]
DryRunFlag = Annotated[
    bool,
    typer.Option("--dry-run", help="Print tasks, bytes, memory, replicas and time; do nothing."),
]
TokensPerSecond = Annotated[
    float | None,
    typer.Option(
        min=0.001,
        help="With --dry-run: what one replica generates; by default as measured in the output, "
        "else 100.",
    ),
]


def named_columns(prompt: str | None, checked: Sequence[str] | None) -> dict[str, str]:
    """Return the file's names of our columns.

    Args:
        prompt: That of the prompt.
        checked: `OURS=NAME` of what answers are checked against.

    Raises:
        ConfigError: One is not written so.
    """
    columns = {} if prompt is None else {"prompt": prompt}
    for text in checked or ():
        ours, separator, name = text.partition("=")
        if ours not in CHECKED_COLUMNS or not separator or not name:
            raise ConfigError(
                "not the name of a column that answers are checked against",
                where=argument("checked_columns"),
                got=text,
                expected=f"OURS=NAME, OURS one of {', '.join(CHECKED_COLUMNS)}",
            )
        require_first(ours, columns, setting="checked_columns", text=text)
        columns[ours] = name
    return columns


def preset_sampling(name: str | None) -> Given:
    """Return the sampling settings that a preset sets; none without a name.

    Raises:
        ConfigError: There is no such preset.
    """
    if name not in (None, "paper"):
        raise ConfigError("unknown preset", where=argument("preset"), got=name, expected="paper")
    left_out = {"num_samples", "seed"}
    return {} if name is None else PAPER_SAMPLING.model_dump(exclude=left_out)
