"""The request, checked and read before anything starts: loads, prompts, limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from expo_ray.credentials import read_api_key
from expo_ray.errors import ConfigError, argument
from expo_ray.loadtests.loads import Load
from expo_ray.loadtests.options import LoadtestOptions
from expo_ray.loadtests.trace import read_trace
from expo_ray.tables import Prompt, read_prompts

Find = Literal["saturation", "slo"]


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadPlan:
    """What will be offered."""

    loads: tuple[Load, ...]
    find: Find | None
    """Go on from these loads, see `search`; None offers exactly them."""
    prompts: tuple[Prompt, ...]
    num_requests: int
    max_tokens: int
    options: LoadtestOptions


def make_plan(
    *,
    prompts: str | Path,
    concurrency: Sequence[int],
    rate: Sequence[float],
    trace: str | Path | None,
    find: Find | None,
    num_requests: int,
    max_tokens: int,
    options: LoadtestOptions | None,
) -> LoadPlan:
    """Check the arguments of `loadtest` and read its files.

    Raises:
        ConfigError: The loads do not make sense, or the API key cannot be sent.
        TableError: Prompts or trace cannot be read.
    """
    options = options or LoadtestOptions()
    _check_amounts(concurrency, rate, num_requests, max_tokens)
    loads = [Load(concurrency=n) for n in concurrency] + [Load(rate=r) for r in rate]
    if trace is not None:
        loads.append(Load(trace=read_trace(trace, speed=options.trace_speed)))
    if not loads:
        raise ConfigError(
            "no load was asked for",
            where=f"{argument('concurrency')}, {argument('rate')}, {argument('trace')}",
            expected="one",
        )
    if find is not None:
        _check_search(find, concurrency, rate, trace, options)
    read_api_key(options.api_key_env)
    return LoadPlan(
        loads=tuple(loads),
        find=find,
        prompts=tuple(read_prompts(prompts)),
        num_requests=num_requests,
        max_tokens=max_tokens,
        options=options,
    )


def _check_amounts(
    concurrency: Sequence[int], rate: Sequence[float], num_requests: int, max_tokens: int
) -> None:
    if any(n < 1 for n in concurrency) or any(not 0 < r < float("inf") for r in rate):
        raise ConfigError(
            "a load must be above 0",
            where=f"{argument('concurrency')}, {argument('rate')}",
            got=", ".join(str(n) for n in (*concurrency, *rate)),
        )
    if num_requests < 1 or max_tokens < 1:
        raise ConfigError(
            "a load test needs requests, and they need tokens",
            where=f"{argument('num_requests')}, {argument('max_tokens')}",
            got=f"{num_requests}, {max_tokens}",
            expected="1 or more",
        )


def _check_search(
    find: Find,
    concurrency: Sequence[int],
    rate: Sequence[float],
    trace: str | Path | None,
    options: LoadtestOptions,
) -> None:
    if trace is not None or bool(concurrency) == bool(rate) or (find == "slo" and len(rate) != 1):
        raise ConfigError(
            "a search needs a load to begin with",
            where=argument("find"),
            got=find,
            expected=f"one {argument('rate')}"
            if find == "slo"
            else f"{argument('concurrency')} or {argument('rate')}",
        )
    limits = (options.ttft_slo_ms, options.tpot_slo_ms, options.e2el_slo_ms)
    if find == "slo" and not any(limits):
        raise ConfigError(
            "the search has no objective to meet",
            where=argument("find", "slo"),
            expected=f"a limit in ms: {argument('ttft_slo_ms')}, {argument('tpot_slo_ms')} or "
            f"{argument('e2el_slo_ms')}",
        )
