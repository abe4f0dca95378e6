"""How throughput grows with replicas, how evenly they share, and what the proxy costs."""

from __future__ import annotations

import secrets
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expo_ray.checkpoints import atomic_write_json
from expo_ray.checkpoints.storages.local_output import require_writable_folder
from expo_ray.cluster import ray_session
from expo_ray.errors import ConfigError
from expo_ray.loadtests.measuring import SCHEMA_VERSION, check_outcome, measure
from expo_ray.loadtests.options import LoadtestOptions
from expo_ray.loadtests.plan import make_plan
from expo_ray.loadtests.target import open_target
from expo_ray.progress import NullProgress, Progress
from expo_ray.serving.alpha_setting import RulesLike

WAYS = ("proxy", "direct")
Point = Mapping[str, Any]
Round = tuple[Point, Point]
"""What one round found through the proxy, and through the handle."""


def loadtest_scaling(
    model: str,
    *,
    prompts: str | Path,
    output: str | Path,
    replicas: Sequence[int] = (1, 2, 4),
    concurrency: int = 8,
    initial: str | None = None,
    alpha: float | None = None,
    alpha_rules: RulesLike | None = None,
    extra_tensors: Sequence[str] = (),
    rounds: int = 3,
    num_requests: int = 100,
    max_tokens: int = 256,
    options: LoadtestOptions | None = None,
    address: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Serve a model on more and more replicas and load each number alike, per replica.

    Each number is measured through Serve's HTTP proxy and through the handle of the replicas, by
    turns (proxy, handle, handle, proxy, ...); the difference is what the proxy and HTTP cost.
    Prompts are made unique, otherwise a prefix cache would help whichever comes later.

    Args:
        model: A checkpoint.
        prompts: Prompts file.
        output: Folder for scaling.json and the files of each load test.
        replicas: Numbers of replicas, ascending.
        concurrency: Requests in flight per replica.
        initial: theta0, to serve `model` extrapolated by `alpha`.
        alpha: See `initial`; beside rules, for tensors without one.
        alpha_rules: Alpha by part of the model, as for `loadtest`.
        extra_tensors: Tensors that one side may lack, as for `loadtest`.
        rounds: How often each way is measured; medians are reported.
        num_requests: Measured requests per replica and round.
        max_tokens: Longest answer.
        options: As for `loadtest`.
        address: Ray cluster.
        progress: Where to report.

    Returns:
        The content of scaling.json.

    Raises:
        RequestError: The numbers do not make sense or do not fit the cluster.
        EvaluationError: The service failed more requests than allowed.
        ServingError: The replicas did not start.
    """
    if not replicas or min(replicas) < 1 or list(replicas) != sorted(set(replicas)):
        raise ConfigError(
            "not an ascending list of replicas", where="replicas", got=replicas, expected="1, 2, 4"
        )
    if rounds < 1:
        raise ConfigError("too few rounds", where="rounds", got=rounds, expected="1 or more")
    output = require_writable_folder(output)
    base = (options or LoadtestOptions()).model_copy(update={"unique_prompts": True})
    salt = base.prompt_salt or secrets.token_hex(8)
    found: list[tuple[int, list[Round]]] = []
    with ray_session(address):
        for number in replicas:
            served = base.model_copy(update={"num_replicas": number})
            plan = make_plan(
                prompts=prompts,
                concurrency=[concurrency * number],
                rate=(),
                trace=None,
                find=None,
                num_requests=num_requests * number,
                max_tokens=max_tokens,
                options=served,
            )
            turns: list[Round] = []
            with open_target(
                model,
                initial=initial,
                alpha=alpha,
                alpha_rules=alpha_rules,
                extra_tensors=extra_tensors,
                options=served,
            ) as endpoint:
                for turn in range(rounds):
                    ways: dict[str, Point] = {}
                    for way in WAYS if turn % 2 == 0 else WAYS[::-1]:
                        measured = measure(
                            endpoint,
                            plan,
                            target=model,
                            progress=progress or NullProgress(),
                            salt=f"{salt}-{number}-{turn}-{way}",
                            direct=way == "direct",
                        )
                        folder = output / f"replicas-{number}-{way}" / f"round-{turn}"
                        measured.write(folder)
                        check_outcome(measured.summary, served, folder)
                        [ways[way]] = measured.summary["points"]
                    turns.append((ways["proxy"], ways["direct"]))
            found.append((number, turns))
    scaling = {
        "schema_version": SCHEMA_VERSION,
        "target": model,
        "alpha": endpoint.alpha,
        "alpha_rules": endpoint.alpha_rules,
        "concurrency_per_replica": concurrency,
        "rounds": rounds,
        "points": scaling_points(found),
    }
    atomic_write_json(output / "scaling.json", scaling)
    return scaling


def scaling_points(found: Sequence[tuple[int, Sequence[Round]]]) -> list[dict[str, Any]]:
    """Return what each number of replicas came to: medians over its rounds.

    Args:
        found: Number of replicas; per round its point through the proxy and through the handle.
    """
    proxied = [(number, _middle([proxy for proxy, _ in rounds])) for number, rounds in found]
    fewest, first = proxied[0]
    return [
        {
            "num_replicas": number,
            "concurrency": point["concurrency"],
            "void": any(p["client_saturated"] for pair in rounds for p in pair),
            "output_throughput": point["output_throughput"],
            "request_throughput": point["request_throughput"],
            "efficiency": _scaled(_speed(point, first), fewest / number),
            **balance(point["replicas"], number),
            "proxy": _median_cost(rounds),
        }
        for (number, point), (_, rounds) in zip(proxied, found, strict=True)
    ]


def _middle(points: Sequence[Point]) -> dict[str, Any]:
    """Return one point for several rounds: median speeds, requests of all rounds by replica."""
    by_replica: Counter[str] = Counter()
    for point in points:
        by_replica.update(point["replicas"] or {})
    speeds = ("output_throughput", "request_throughput")
    return {
        "concurrency": points[0]["concurrency"],
        **{name: _median([_best(point, name) for point in points]) for name in speeds},
        "replicas": dict(sorted(by_replica.items())) or None,
        "steady": None,
    }


def _median_cost(rounds: Sequence[Round]) -> dict[str, float | None]:
    costs = [proxy_cost(proxied, direct) for proxied, direct in rounds]
    return {name: _median([cost[name] for cost in costs]) for name in costs[0]}


def balance(replicas: Mapping[str, int] | None, num_replicas: int) -> dict[str, Any]:
    """Return how evenly replicas shared the requests.

    Args:
        replicas: Completed requests by replica; None where the service does not tell.
        num_replicas: How many there are, idle ones included.
    """
    if replicas is None:
        return {"requests_by_replica": None, "busiest_over_mean": None, "idle_replicas": None}
    return {
        "requests_by_replica": dict(replicas),
        "busiest_over_mean": max(replicas.values()) * num_replicas / sum(replicas.values()),
        "idle_replicas": num_replicas - len(replicas),
    }


def proxy_cost(proxied: Point, direct: Point) -> dict[str, float | None]:
    """Return what a request through the proxy takes beyond one through the handle."""

    def added(name: str) -> float | None:
        with_proxy, without = proxied[name], direct[name]
        return None if with_proxy is None or without is None else with_proxy - without

    per_token = added("median_tpot_ms")
    return {
        "throughput_ratio": _speed(proxied, direct),
        "added_median_ttft_ms": added("median_ttft_ms"),
        "added_median_e2el_ms": added("median_e2el_ms"),
        "added_microseconds_per_token": None if per_token is None else per_token * 1e3,
    }


def _speed(point: Point, reference: Point) -> float | None:
    """Return throughput over that of another point: tokens, or requests where none are known."""
    for name in ("output_throughput", "request_throughput"):
        new, old = _best(point, name), _best(reference, name)
        if new is not None and old:
            return new / old
    return None


def _best(point: Point, name: str) -> float | None:
    """Return a figure of the steady part, of the whole where there is none."""
    steady = point["steady"] or {}
    value: float | None = steady.get(name)
    whole: float | None = point[name]
    return whole if value is None else value


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor
