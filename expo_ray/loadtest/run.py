"""Run a load test: open the target, offer every load, write requests.parquet and summary.json."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray

from expo_ray.checkpoints import atomic_write_json
from expo_ray.cluster import ray_session
from expo_ray.errors import ConfigError, EvaluationError
from expo_ray.loadtest.metrics import num_service_errors
from expo_ray.loadtest.options import LoadtestOptions
from expo_ray.loadtest.records import REQUESTS_SCHEMA
from expo_ray.loadtest.runner import Load, Runner
from expo_ray.loadtest.target import open_target
from expo_ray.progress import NullProgress, Progress
from expo_ray.tables import read_prompts

SCHEMA_VERSION = 1


def loadtest(
    target: str,
    *,
    prompts: str | Path,
    output: str | Path,
    concurrency: Sequence[int] = (),
    rate: Sequence[float] = (),
    initial: str | None = None,
    alpha: float | None = None,
    num_requests: int = 100,
    max_tokens: int = 256,
    options: LoadtestOptions | None = None,
    address: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Offer load to a model or a running service and measure what comes back.

    Args:
        target: A model (it is served for the time of the test), or the URL of any
            OpenAI-compatible service.
        prompts: Prompts file; prompts are used in turn, each once while they last.
        output: Folder for summary.json and requests.parquet.
        concurrency: Closed-loop points: requests in flight.
        rate: Open-loop points: requests per second.
        initial: theta0, to serve `target` extrapolated by `alpha`.
        alpha: See `initial`.
        num_requests: Measured requests per point.
        max_tokens: Longest answer.
        options: Everything else; defaults where None.
        address: Ray cluster on which clients (and replicas) run.
        progress: Where to report.

    Returns:
        The content of summary.json.

    Raises:
        RequestError: Points, prompts or target do not make sense; nothing was written.
        EvaluationError: The service failed more requests than allowed, or completed none at some
            point; both files are written before.
        ServingError: The service does not answer.
    """
    options = options or LoadtestOptions()
    loads = _check_loads(concurrency, rate, num_requests, max_tokens)
    rows = read_prompts(prompts)
    progress = progress or NullProgress()
    with (
        ray_session(address),
        open_target(target, initial=initial, alpha=alpha, options=options) as endpoint,
    ):
        runner = Runner(
            endpoint=endpoint,
            prompts=rows,
            num_requests=num_requests,
            max_tokens=max_tokens,
            options=options,
            progress=progress,
        )
        results = [runner.run(index, load) for index, load in enumerate(loads)]
    num_sent = sum(len(table_rows) for _, table_rows in results)
    summary: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "target": target,
        "model": endpoint.model,
        "alpha": alpha,
        "weights_digest": endpoint.weights_digest,
        "num_prompts": len(rows),
        # A server with a prefix cache answers a prompt that it has seen sooner.
        "prompts_reused": num_sent > len(rows),
        "num_requests": num_requests,
        "max_tokens": max_tokens,
        "options": options.model_dump(),
        "versions": {
            "expo-ray": importlib.metadata.version("expo-ray"),
            "ray": ray.__version__,
            "python": platform.python_version(),
        },
        "points": [point for point, _ in results],
    }
    _write(Path(output), summary, [row for _, table_rows in results for row in table_rows])
    _check_errors(summary["points"], loads, options, Path(output))
    return summary


def _check_loads(
    concurrency: Sequence[int], rate: Sequence[float], num_requests: int, max_tokens: int
) -> list[Load]:
    loads = [Load(concurrency=n) for n in concurrency] + [Load(rate=r) for r in rate]
    if not loads:
        raise ConfigError("no load was asked for", where="--concurrency, --rate", expected="one")
    if any(n < 1 for n in concurrency) or any(not 0 < r < float("inf") for r in rate):
        raise ConfigError(
            "a load must be above 0",
            where="--concurrency, --rate",
            got=", ".join(str(n) for n in (*concurrency, *rate)),
        )
    if num_requests < 1 or max_tokens < 1:
        raise ConfigError(
            "a load test needs requests, and they need tokens",
            where="--num-requests, --max-tokens",
            got=f"{num_requests}, {max_tokens}",
            expected="1 or more",
        )
    return loads


def _write(output: Path, summary: Mapping[str, Any], rows: list[dict[str, Any]]) -> None:
    output.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=REQUESTS_SCHEMA)
    pq.write_table(table, output / "requests.parquet")
    atomic_write_json(output / "summary.json", summary)


def _check_errors(
    points: Sequence[dict[str, Any]], loads: Sequence[Load], options: LoadtestOptions, output: Path
) -> None:
    for point, load in zip(points, loads, strict=True):
        budget = options.max_error_rate * point["num_requests"]
        if point["completed"] and num_service_errors(point) <= budget:
            continue
        classes = ", ".join(f"{kind} {count}" for kind, count in point["errors"].items())
        raise EvaluationError(
            f"{point['failed']} of {point['num_requests']} requests failed at {load}",
            where=output / "requests.parquet",
            got=classes,
            expected=f"at most {options.max_error_rate:.1%} failed by the service",
        )
