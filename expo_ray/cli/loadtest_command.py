"""The command `loadtest`: one load test, a comparison of two alphas, or a scaling test."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from expo_ray.cli.loadtest_output import render_comparison, render_points, render_scaling
from expo_ray.cli.session import (
    AddressOption,
    JsonFlag,
    QuietFlag,
    Session,
    VerboseFlag,
)
from expo_ray.errors import ConfigError
from expo_ray.json_text import parse_json

_LOAD = "Load"
_LIMITS = "Limits"
_SERVED = "A model that is served for the test"
_SERVICE = "A running service"


def loadtest(
    target: Annotated[str, typer.Argument(help="A checkpoint, or the URL of an OpenAI service.")],
    prompts: Annotated[str, typer.Option(help="JSONL, JSON, Parquet or CSV file of prompts.")],
    output: Annotated[str, typer.Option(help="Folder for summary.json and requests.parquet.")],
    concurrency: Annotated[
        str | None,
        typer.Option(
            help="Closed loop: requests in flight, e.g. 1,2,4. With several --replicas: for each.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(help="Open loop: requests per second, e.g. 1,2,4.", rich_help_panel=_LOAD),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            help="Replay a trace: JSON lines with `seconds` or `timestamp` (ms), optionally prompt "
            "and output_length; or the requests.parquet of an earlier load test.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    trace_speed: Annotated[
        float | None,
        typer.Option(help="Replay the trace so many times as fast.", rich_help_panel=_LOAD),
    ] = None,
    find: Annotated[
        str | None,
        typer.Option(
            help="saturation: double the load until throughput grows no more. slo: search the "
            "highest rate at which the --...-slo-ms are met.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    max_points: Annotated[
        int | None,
        typer.Option(min=1, help="--find ends after so many loads (12).", rich_help_panel=_LOAD),
    ] = None,
    search_seconds: Annotated[
        float | None,
        typer.Option(
            help="--find offers each rate for so long at least (10), and longer where answers "
            "take more than a quarter of it.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    num_requests: Annotated[
        int,
        typer.Option(
            min=1, help="Measured requests per point, of --find at least.", rich_help_panel=_LOAD
        ),
    ] = 100,
    max_tokens: Annotated[
        int, typer.Option(min=1, help="Longest response.", rich_help_panel=_LOAD)
    ] = 256,
    arrivals: Annotated[
        str | None,
        typer.Option(
            help="Open loop: poisson (default), constant or gamma.", rich_help_panel=_LOAD
        ),
    ] = None,
    burstiness: Annotated[
        float | None,
        typer.Option(
            help="Shape of gamma arrivals: below 1 burstier than Poisson.", rich_help_panel=_LOAD
        ),
    ] = None,
    warmup: Annotated[
        int | None,
        typer.Option(min=0, help="Requests before a point, not measured.", rich_help_panel=_LOAD),
    ] = None,
    cooldown: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="Requests after those measured, which keep the load up to their end.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    ramp_seconds: Annotated[
        float | None,
        typer.Option(
            min=0, help="The load rises linearly so long, not measured.", rich_help_panel=_LOAD
        ),
    ] = None,
    unique_prompts: Annotated[
        bool,
        typer.Option(
            "--unique-prompts",
            help="Letters before each prompt that never repeat: no prefix cache helps.",
            rich_help_panel=_LOAD,
        ),
    ] = False,
    extra_body: Annotated[
        str | None,
        typer.Option(
            help="Further fields of every request as JSON, e.g. '{\"temperature\": 0}'.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Of the arrival times.", rich_help_panel=_LOAD)
    ] = None,
    clients: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Ray actors that send; off the replicas' nodes where there are others.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    client_label: Annotated[
        list[str] | None,
        typer.Option(
            help="key=value: send only from Ray nodes with this label (ray start --labels). "
            "Repeatable.",
            rich_help_panel=_LOAD,
        ),
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            help="Seconds after which a request has failed (600).", rich_help_panel=_LIMITS
        ),
    ] = None,
    max_client_lag_ms: Annotated[
        float | None,
        typer.Option(
            help="A point is void where the client's own delay exceeds this at p99 (50).",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    ttft_slo_ms: Annotated[
        float | None, typer.Option(help="Goodput: first token within.", rich_help_panel=_LIMITS)
    ] = None,
    tpot_slo_ms: Annotated[
        float | None,
        typer.Option(help="Goodput: each further token within.", rich_help_panel=_LIMITS),
    ] = None,
    e2el_slo_ms: Annotated[
        float | None, typer.Option(help="Goodput: whole answer within.", rich_help_panel=_LIMITS)
    ] = None,
    slo_share: Annotated[
        float | None,
        typer.Option(
            help="Share of all sent that must, for --find slo (0.99).", rich_help_panel=_LIMITS
        ),
    ] = None,
    max_error_rate: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Exit 1 where the service fails a larger share (0.01).",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    max_empty_rate: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Exit 1 where a larger share of the answers ends properly, but without any text "
            "(0.5); these count as failed, and not in --max-error-rate.",
            rich_help_panel=_LIMITS,
        ),
    ] = None,
    initial: Annotated[
        str | None,
        typer.Option(
            help="theta0: serve TARGET + alpha * (TARGET - INITIAL).", rich_help_panel=_SERVED
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            help="alpha of the live extrapolation; beside --alpha-rules, for tensors without a "
            "rule.",
            rich_help_panel=_SERVED,
        ),
    ] = None,
    alpha_rules: Annotated[
        str | None,
        typer.Option(
            help="YAML file that gives parts of the model their own alpha, as for extrapolate.",
            rich_help_panel=_SERVED,
        ),
    ] = None,
    versus_alpha: Annotated[
        float | None,
        typer.Option(
            help="Compare --alpha (or --alpha-rules) with this one on the same requests, by turns "
            "(0: TARGET itself).",
            rich_help_panel=_SERVED,
        ),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(
            min=1,
            help="Turns of each alpha or, in a scaling test, with and without the proxy.",
            rich_help_panel=_SERVED,
        ),
    ] = 3,
    one_at_a_time: Annotated[
        bool,
        typer.Option(
            "--one-at-a-time",
            help="Serve each alpha for its turns alone: half the hardware, more starts.",
            rich_help_panel=_SERVED,
        ),
    ] = False,
    replicas: Annotated[
        str,
        typer.Option(
            help="Replicas; several (1,2,4) make a scaling test, with and without the proxy.",
            rich_help_panel=_SERVED,
        ),
    ] = "1",
    engine: Annotated[
        str, typer.Option(help="auto, transformers or vllm.", rich_help_panel=_SERVED)
    ] = "auto",
    max_model_len: Annotated[
        int | None,
        typer.Option(
            min=1, help="Tokens of prompt and response together.", rich_help_panel=_SERVED
        ),
    ] = None,
    tensor_parallel_size: Annotated[
        int,
        typer.Option(
            min=1, help="Devices that share each layer (vllm only).", rich_help_panel=_SERVED
        ),
    ] = 1,
    engine_arg: Annotated[
        list[str] | None,
        typer.Option(
            metavar="K=V", help="vLLM's own engine argument; repeatable.", rich_help_panel=_SERVED
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="Address it listens on (127.0.0.1). 0.0.0.0 lets clients on other nodes reach it, "
            "with a key made for the test.",
            rich_help_panel=_SERVED,
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="Model to ask for, of several.", rich_help_panel=_SERVICE),
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(help="Environment variable with the API key.", rich_help_panel=_SERVICE),
    ] = None,
    address: AddressOption = None,
    json_output: JsonFlag = False,
    verbose: VerboseFlag = False,
    quiet: QuietFlag = False,
) -> None:
    """Measure latency and throughput, from the intended send time of each request.

    Latency counts from when a request was due, so that a service that stalls cannot hide it
    (TTFT: first text; TPOT: per further token of the server's usage; E2E: last text). A point at
    which the client itself could not keep up is void: it is marked, `void` is true in summary.json,
    and the exit code stays 0. Failures are counted by class; too many of them exit 1, after
    everything is written.

    Examples:
    expo-ray loadtest ./expo --prompts p.jsonl --output lt --concurrency 1,4,16

    expo-ray loadtest http://host:8000 --prompts p.jsonl --output lt --rate 1 --find slo
    --ttft-slo-ms 500

    expo-ray loadtest ./dpo --initial ./sft --alpha 0.3 --versus-alpha 0 --prompts p.jsonl
    --output lt --concurrency 8
    """
    given = {
        "arrivals": arrivals,
        "burstiness": burstiness,
        "num_warmup": warmup,
        "num_cooldown": cooldown,
        "ramp_seconds": ramp_seconds,
        "unique_prompts": unique_prompts,
        "extra_body": _json_object(extra_body),
        "seed": seed,
        "num_clients": clients,
        "client_labels": _labels(client_label),
        "trace_speed": trace_speed,
        "max_points": max_points,
        "search_seconds": search_seconds,
        "request_timeout_seconds": timeout,
        "max_client_lag_ms": max_client_lag_ms,
        "host": host,
        "ttft_slo_ms": ttft_slo_ms,
        "tpot_slo_ms": tpot_slo_ms,
        "e2el_slo_ms": e2el_slo_ms,
        "slo_share": slo_share,
        "max_error_rate": max_error_rate,
        "max_empty_rate": max_empty_rate,
        "engine": engine,
        "engine_options": _engine_options(max_model_len, tensor_parallel_size, engine_arg),
        "model": model,
        "api_key_env": api_key_env,
    }
    numbers = [int(n) for n in _numbers("--replicas", replicas)]
    flights = [int(n) for n in _numbers("--concurrency", concurrency)]
    rates = _numbers("--rate", rate)
    _check(target, flights, rates, trace, find, versus_alpha, numbers)
    common: dict[str, Any] = {
        "prompts": prompts,
        "output": output,
        "num_requests": num_requests,
        "max_tokens": max_tokens,
        "address": address,
        "options": _options(given, numbers[0]),
    }
    pair: dict[str, Any] = {"initial": initial, "alpha": alpha, "alpha_rules": alpha_rules}
    with Session(json_output=json_output, verbose=verbose, quiet=quiet) as session:
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
                Contender(target=target, initial=initial, alpha=versus_alpha),
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
            "give either --concurrency (closed loop) or --rate (open loop) or --trace",
            where="loadtest",
            hint="--concurrency 1,4,16",
        )
    if find not in (None, "saturation", "slo"):
        raise ConfigError("unknown search", where="--find", got=find, expected="saturation or slo")
    if len(replicas) > 1:
        plain = trace is None and find is None and versus_alpha is None
        if len(flights) != 1 or not plain or target.startswith(("http://", "https://")):
            raise ConfigError(
                "a scaling test takes a checkpoint and one --concurrency, and nothing else",
                where="--replicas",
                got=",".join(map(str, replicas)),
                hint="--replicas 1,2,4 --concurrency 8",
            )
    if versus_alpha is not None and (trace is not None or find is not None):
        raise ConfigError(
            "two alphas are compared at given loads",
            where="--versus-alpha",
            expected="--concurrency or --rate without --find",
        )


def _options(given: Mapping[str, Any], num_replicas: int) -> Any:
    from expo_ray.loadtests import LoadtestOptions

    changes = {key: value for key, value in given.items() if value is not None}
    try:
        return LoadtestOptions(num_replicas=num_replicas, **changes)
    except ValidationError as error:
        first = error.errors()[0]
        raise ConfigError(
            str(first["msg"]), where=".".join(map(str, first["loc"])), got=first["input"]
        ) from error


def _engine_options(
    max_model_len: int | None, tensor_parallel_size: int, engine_args: list[str] | None
) -> Any:
    from expo_ray.serving import EngineOptions, parse_engine_args

    return EngineOptions(
        max_model_len=max_model_len,
        tensor_parallel_size=tensor_parallel_size,
        engine_args=parse_engine_args(engine_args or ()),
    )


def _json_object(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ConfigError("not JSON", where="--extra-body", got=text) from error
    if not isinstance(value, dict):
        raise ConfigError("not a JSON object", where="--extra-body", got=text)
    return value


def _labels(pairs: list[str] | None) -> dict[str, str] | None:
    if not pairs:
        return None
    labels = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
    if len(labels) != len(pairs):
        raise ConfigError(
            "not labels of Ray nodes",
            where="--client-label",
            got=", ".join(pairs),
            expected="key=value, each key once",
        )
    return labels


def _numbers(flag: str, text: str | None) -> list[float]:
    try:
        numbers = [float(part) for part in (text or "").split(",") if part.strip()]
    except ValueError as error:
        raise ConfigError(
            "not a list of numbers", where=flag, got=text, expected="1,2,4"
        ) from error
    whole = flag == "--rate" or all(n == int(n) for n in numbers if abs(n) < 1e6)
    if any(not 0 < n < 1e6 for n in numbers) or not whole or (text is not None and not numbers):
        raise ConfigError("out of range", where=flag, got=text, expected="positive, e.g. 1,2,4")
    return numbers
