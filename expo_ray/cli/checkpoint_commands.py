"""Commands on checkpoints: extrapolate, verify, inspect, diagnose."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from expo_ray.cli.session import (
    AddressOption,
    JsonFlag,
    QuietFlag,
    Session,
    VerboseFlag,
    format_bytes,
    key_value_table,
)

Initial = Annotated[str, typer.Argument(help="theta0, the SFT checkpoint: a path, URI or Hub id.")]
Aligned = Annotated[str, typer.Argument(help="theta1, the DPO or RLHF checkpoint.")]
InlineAddress = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Ray cluster: local, auto, host:port; inline = this process, without Ray. "
        "[default: RAY_ADDRESS, else local]",
        show_default=False,
    ),
]
PANEL = "Checkpoints"


def register(app: typer.Typer) -> None:
    """Add this module's commands to the tree."""
    app.command(rich_help_panel=PANEL)(extrapolate)
    app.command(rich_help_panel=PANEL)(verify)
    app.command(name="inspect", rich_help_panel=PANEL)(inspect_)
    app.command(rich_help_panel=PANEL)(diagnose)


def extrapolate(
    initial: Initial,
    aligned: Aligned,
    output: Annotated[str, typer.Argument(help="Folder of the new checkpoint.")],
    alpha: Annotated[
        list[float],
        typer.Option(
            "--alpha",
            "-a",
            help="How far beyond ALIGNED, in units of delta; repeat for several checkpoints "
            "from one read (OUTPUT/alpha-0.3/, ...). Negative values interpolate.",
        ),
    ],
    output_dtype: Annotated[
        str, typer.Option(help="auto (each tensor's own), bfloat16, float16 or float32.")
    ] = "auto",
    max_shard_size: Annotated[str, typer.Option(help="Largest output file.")] = "5GB",
    vocab_policy: Annotated[
        str,
        typer.Option(help="Where vocabularies differ: refuse, common-rows or copy-aligned."),
    ] = "refuse",
    allow_nonfinite: Annotated[
        bool, typer.Option("--allow-nonfinite", help="Go on where an input holds NaN or infinity.")
    ] = False,
    allow_overflow: Annotated[
        bool, typer.Option("--allow-overflow", help="Go on where the result overflows its dtype.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print tasks, bytes and memory; write nothing.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what another request left in OUTPUT.")
    ] = False,
    address: InlineAddress = None,
    json_output: JsonFlag = False,
    verbose: VerboseFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Write ALIGNED + alpha * (ALIGNED - INITIAL) as a loadable checkpoint.

    A killed command continues when it is run again. Tasks of one output shard each run on the
    nodes of the cluster; the bytes do not depend on how many.

    Example: expo-ray extrapolate ./sft ./dpo ./expo --alpha 0.3
    """
    from expo_ray.extrapolation import extrapolate as run_extrapolate

    with Session(json_output=json_output, verbose=verbose, quiet=quiet) as session:
        result = run_extrapolate(
            initial,
            aligned,
            output,
            alpha=alpha,
            output_dtype=output_dtype,
            max_shard_size=max_shard_size,
            vocab_policy=vocab_policy,
            allow_nonfinite=allow_nonfinite,
            allow_overflow=allow_overflow,
            overwrite=overwrite,
            dry_run=dry_run,
            address=address,
            progress=session.progress,
        ).as_dict()
        session.emit(result, lambda console: _render_facts(console, result))


def verify(
    output: Annotated[str, typer.Argument(help="A checkpoint that extrapolate wrote.")],
    initial: Annotated[
        str | None, typer.Option(help="Where INITIAL lies now, if it was moved.")
    ] = None,
    aligned: Annotated[
        str | None, typer.Option(help="Where ALIGNED lies now, if it was moved.")
    ] = None,
    address: InlineAddress = None,
    json_output: JsonFlag = False,
    verbose: VerboseFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Recompute a written checkpoint from its inputs and compare bit for bit.

    Exit code 1 names the first differing file or tensor.

    Example: expo-ray verify ./expo
    """
    from expo_ray.extrapolation import verify as run_verify

    with Session(json_output=json_output, verbose=verbose, quiet=quiet) as session:
        result = run_verify(
            output, initial=initial, aligned=aligned, address=address, progress=session.progress
        ).as_dict()
        session.emit(result, lambda console: _render_facts(console, result))


def inspect_(
    checkpoint: Annotated[str, typer.Argument(help="A path, URI or Hub id.")],
    json_output: JsonFlag = False,
    verbose: VerboseFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Show what a checkpoint holds, from its headers alone.

    Example: expo-ray inspect ./dpo
    """
    from expo_ray.extrapolation import inspect_checkpoint

    with Session(json_output=json_output, verbose=verbose, quiet=quiet) as session:
        result = inspect_checkpoint(checkpoint).as_dict()
        session.emit(result, lambda console: _render_facts(console, result))


def diagnose(
    initial: Initial,
    aligned: Aligned,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 1 where the pair is not fit.")
    ] = False,
    address: InlineAddress = None,
    json_output: JsonFlag = False,
    verbose: VerboseFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Say whether a pair is fit for extrapolation: how large delta is, and where.

    Reads both checkpoints once. Norms are shown beside the published scales (paper section 3).

    Example: expo-ray diagnose ./sft ./dpo
    """
    from expo_ray.extrapolation import diagnose as run_diagnose

    with Session(json_output=json_output, verbose=verbose, quiet=quiet) as session:
        result = run_diagnose(
            initial, aligned, address=address, progress=session.progress
        ).as_dict()
        session.emit(result, lambda console: _render_diagnosis(console, result))
        if strict and not result["fit"]:
            raise typer.Exit(1)


def _render_facts(console: Console, result: dict[str, Any]) -> None:
    """Print scalars as facts and lists of records as tables."""
    facts: dict[str, object] = {}
    for key, value in result.items():
        if key == "schema_version" or value is None or isinstance(value, list | dict):
            continue
        facts[key.replace("_", " ")] = _show(key, value)
    console.print(key_value_table(facts))
    for key, value in result.items():
        if isinstance(value, dict) and value:
            shown = {k: _show(k, v) for k, v in value.items() if not isinstance(v, list | dict)}
            console.print(key_value_table(shown, title=key.replace("_", " ")))
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            console.print(_record_table(key.replace("_", " "), value))
        elif isinstance(value, list) and value:
            console.print(key_value_table({key.replace("_", " "): ", ".join(map(str, value))}))


def _record_table(title: str, records: list[dict[str, Any]]) -> Table:
    columns = [k for k, v in records[0].items() if not isinstance(v, list | dict)]
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for record in records:
        table.add_row(*(_show(column, record.get(column)) for column in columns))
    return table


def _show(key: str, value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, int | float) and "bytes" in key:
        return format_bytes(value)
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    is_digest = len(text) == 64 and Path(text).name == text
    return f"{text[:16]}..." if is_digest else text


def _render_diagnosis(console: Console, result: dict[str, Any]) -> None:
    _render_facts(console, result)
    verdict = "[green]fit[/green]" if result["fit"] else "[red]not fit[/red]"
    console.print(f"\nThis pair is {verdict} for extrapolation.")


__all__ = ["AddressOption", "register"]
