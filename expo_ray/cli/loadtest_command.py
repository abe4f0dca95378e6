"""The command `loadtest`: one load test, a comparison of two alphas, or a scaling test."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from expo_ray.cli.loadtest_output import render_comparison, render_points, render_scaling
from expo_ray.cli.model_options import FlagsOf, Given, from_flags
from expo_ray.cli.options import ExtraTensors
from expo_ray.cli.session import AddressOption, OutputFlags, Session
from expo_ray.errors import ConfigError, argument
from expo_ray.loadtests.options import SEARCH_PANEL, SERVED_PANEL, LoadtestOptions


def loadtest(
    target: Annotated[str, typer.Argument(help="A checkpoint, or the URL of an OpenAI service.")],
    prompts: Annotated[
        str, typer.Option(metavar="FILE", help="JSONL, JSON, Parquet or CSV file of prompts.")
    ],
    output: Annotated[
        str, typer.Option(metavar="DIR", help="Folder for summary.json and requests.parquet.")
    ],
    concurrency: Annotated[
        str | None,
        typer.Option(
            metavar="N,N",
            help="Closed loop: requests in flight, such as 1,4,16. With several --replicas: for "
            "each.",
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(metavar="X,X", help="Open loop: requests per second, such as 1,2,4."),
    ] = None,
    num_requests: Annotated[
        int, typer.Option(min=1, help="Measured requests per point, of --find at least.")
    ] = 100,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest response.")] = 256,
    initial: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL",
            help="theta0: serve TARGET + alpha * (TARGET - INITIAL).",
            rich_help_panel=SERVED_PANEL,
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            help="alpha of the live extrapolation; beside --alpha-rules, of the rest.",
            rich_help_panel=SERVED_PANEL,
        ),
    ] = None,
    alpha_rules: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="YAML: an alpha for each part of the model, as for extrapolate.",
            rich_help_panel=SERVED_PANEL,
        ),
    ] = None,
    extra_tensors: ExtraTensors = None,
    versus_alpha: Annotated[
        float | None,
        typer.Option(
            help="Compare with this alpha by turns on the same requests; 0: TARGET itself.",
            rich_help_panel=SERVED_PANEL,
        ),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(
            min=1,
            help="Turns of each alpha, or with and without the proxy in a scaling test.",
            rich_help_panel=SERVED_PANEL,
        ),
    ] = 3,
    one_at_a_time: Annotated[
        bool,
        typer.Option(
            "--one-at-a-time",
            help="Serve each alpha for its turns alone: half the hardware, more starts.",
            rich_help_panel=SERVED_PANEL,
        ),
    ] = False,
    replicas: Annotated[
        str,
        typer.Option(
            metavar="N,N",
            help="Several (1,2,4) make a scaling test, with and without the proxy.",
            rich_help_panel=SERVED_PANEL,
        ),
    ] = "1",
    find: Annotated[
        str | None,
        typer.Option(
            metavar="WHAT",
            help="saturation: double the load while throughput grows; slo: the highest rate "
            "within --...-slo-ms.",
            rich_help_panel=SEARCH_PANEL,
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Replay a trace, or the requests.parquet of an earlier load test.",
            rich_help_panel=SEARCH_PANEL,
        ),
    ] = None,
    *,
    options: Annotated[Given, FlagsOf(LoadtestOptions)],
    address: AddressOption = None,
    shown: OutputFlags,
) -> None:
    """Measure latency and throughput, from the intended send time of each request.

    Latency counts from when a request was due, so that a service that stalls cannot hide it. A
    point at which the client could not keep up is void; the exit code stays 0. Too many failures
    exit 1, after everything is written.

    Examples:
    expo-ray loadtest ./expo --prompts p.jsonl --output lt --concurrency 1,4,16

    expo-ray loadtest http://host:8000 --prompts p.jsonl --output lt --rate 1 --find slo
    --ttft-slo-ms 500

    expo-ray loadtest ./dpo --initial ./sft --alpha 0.3 --versus-alpha 0 --prompts p.jsonl
    --output lt --concurrency 8
    """
    numbers = [int(n) for n in _numbers("replicas", replicas)]
    flights = [int(n) for n in _numbers("concurrency", concurrency)]
    rates = _numbers("rate", rate)
    _check(target, flights, rates, trace, find, versus_alpha, numbers)
    common: dict[str, Any] = {
        "prompts": prompts,
        "output": output,
        "num_requests": num_requests,
        "max_tokens": max_tokens,
        "address": address,
        "options": from_flags(LoadtestOptions, {**options, "num_replicas": numbers[0]}),
    }
    extra = tuple(extra_tensors or ())
    pair: dict[str, Any] = {"initial": initial, "alpha": alpha, "alpha_rules": alpha_rules}
    pair["extra_tensors"] = extra
    with Session(**shown) as session:
        common["progress"] = session.progress
        if len(numbers) > 1:
            from expo_ray.loadtests import loadtest_scaling

            scaled = loadtest_scaling(
                target,
                replicas=numbers,
                concurrency=flights[0],
                rounds=rounds,
                **pair,
                **common,
            )
            session.emit(scaled, lambda console: render_scaling(console, scaled))
        elif versus_alpha is not None:
            from expo_ray.loadtests import Contender, compare_targets

            compared = compare_targets(
                Contender(target=target, initial=initial, alpha=versus_alpha, extra_tensors=extra),
                Contender(target=target, **pair),
                concurrency=flights,
                rate=rates,
                rounds=rounds,
                together=not one_at_a_time,
                **common,
            )
            session.emit(compared, lambda console: render_comparison(console, compared))
        else:
            from expo_ray.loadtests import loadtest as run_loadtest

            result = run_loadtest(
                target,
                concurrency=flights,
                rate=rates,
                trace=trace,
                find=find,  # type: ignore[arg-type]
                **pair,
                **common,
            )
            session.emit(result, lambda console: render_points(console, result))


def _check(
    target: str,
    flights: list[int],
    rates: list[float],
    trace: Path | None,
    find: str | None,
    versus_alpha: float | None,
    replicas: list[int],
) -> None:
    if sum((bool(flights), bool(rates), trace is not None)) != 1:
        raise ConfigError(
            f"give either {argument('concurrency')} (closed loop) or {argument('rate')} (open "
            f"loop) or {argument('trace')}",
            where="loadtest",
            hint=argument("concurrency", "1,4,16"),
        )
    if find not in (None, "saturation", "slo"):
        raise ConfigError(
            "unknown search", where=argument("find"), got=find, expected="saturation or slo"
        )
    if len(replicas) > 1:
        plain = trace is None and find is None and versus_alpha is None
        if len(flights) != 1 or not plain or target.startswith(("http://", "https://")):
            raise ConfigError(
                f"a scaling test takes a checkpoint and one {argument('concurrency')}, and nothing "
                "else",
                where=argument("replicas"),
                got=",".join(map(str, replicas)),
                hint=f"{argument('replicas', '1,2,4')} {argument('concurrency', 8)}",
            )
    if versus_alpha is not None and (trace is not None or find is not None):
        raise ConfigError(
            "two alphas are compared at given loads",
            where=argument("versus_alpha"),
            expected=f"{argument('concurrency')} or {argument('rate')} without {argument('find')}",
        )


def _numbers(name: str, text: str | None) -> list[float]:
    try:
        numbers = [float(part) for part in (text or "").split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(
            "not a list of numbers", where=argument(name), got=text, expected="1,2,4"
        ) from error
    whole = name == "rate" or all(n == int(n) for n in numbers if abs(n) < 1e6)
    if any(not 0 < n < 1e6 for n in numbers) or not whole or (text is not None and not numbers):
        raise ConfigError(
            "out of range", where=argument(name), got=text, expected="positive, e.g. 1,2,4"
        )
    return numbers
