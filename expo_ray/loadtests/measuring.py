"""One service, one plan: every point offered, one summary and its raw rows."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from expo_ray.checkpoints import atomic_write_json
from expo_ray.errors import EvaluationError
from expo_ray.loadtests.loads import Load
from expo_ray.loadtests.metrics import over_budget
from expo_ray.loadtests.options import LoadtestOptions
from expo_ray.loadtests.plan import LoadPlan
from expo_ray.loadtests.prompting import PromptSource
from expo_ray.loadtests.records import REQUESTS_SCHEMA
from expo_ray.loadtests.runner import Runner
from expo_ray.loadtests.search import find_highest_rate, find_saturation
from expo_ray.loadtests.stream import Endpoint
from expo_ray.progress import Progress
from expo_ray.tables.schemas import table_of
from expo_ray.versions import versions

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What `measure` found."""

    summary: dict[str, Any]
    rows: list[dict[str, Any]]

    def write(self, output: Path) -> None:
        """Write requests.parquet, then summary.json."""
        output.mkdir(parents=True, exist_ok=True)
        table = table_of(self.rows, REQUESTS_SCHEMA)
        pq.write_table(table, output / "requests.parquet")
        atomic_write_json(output / "summary.json", self.summary)


def measure(
    endpoint: Endpoint,
    plan: LoadPlan,
    *,
    target: str,
    progress: Progress,
    salt: str | None = None,
    seen: set[bytes] | None = None,
    direct: bool = False,
) -> Measured:
    """Offer every load of a plan to a service.

    Args:
        endpoint: The service.
        plan: What to offer.
        target: Name of the service in the summary.
        progress: Where to report.
        salt: Of unique prompts; None takes that of the options, or draws one.
        seen: What this service was sent by earlier calls, noted here; None: nothing is known.
        direct: Reach the replicas through their handle, without proxy and HTTP.

    Raises:
        ConfigError: The clients may run nowhere.
        EvaluationError: A client died.
    """
    options = plan.options
    salt = salt or options.prompt_salt or secrets.token_hex(8)
    salt = salt if options.unique_prompts else None
    source = PromptSource(plan.prompts, salt, seen)
    runner = Runner(
        endpoint=endpoint,
        prompts=source,
        num_requests=plan.num_requests,
        max_tokens=plan.max_tokens,
        options=options,
        progress=progress,
        direct=direct,
        searching=plan.find is not None,
    )
    points: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []

    def offer(load: Load) -> dict[str, Any]:
        point, found = runner.run(len(points), load)
        points.append(point)
        rows.extend(found)
        return point

    def offer_until_told(load: Load) -> dict[str, Any]:
        point = offer(load)
        told = load.rate is None or point["keeps_up"] is not None or point["client_saturated"]
        # Too short for answers of this length; the next is as long as they need.
        return point if told else offer(load)

    search: dict[str, Any] | None = None
    if plan.find == "saturation":
        search = find_saturation(offer_until_told, plan.loads, options)
    elif plan.find == "slo":
        search = find_highest_rate(offer_until_told, plan.loads[0].rate or 1.0, options)
    else:
        for load in plan.loads:
            offer(load)
    summary: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "target": target,
        "model": endpoint.model,
        "alpha": endpoint.alpha,
        "alpha_rules": endpoint.alpha_rules,
        "weights_digest": endpoint.weights_digest,
        "void": any(point["client_saturated"] for point in points),
        "num_prompts": len(plan.prompts),
        # A server with a prefix cache answers a prompt that it has seen sooner.
        "prompts_reused": source.prefix_cache == "reused",
        "direct": direct,
        "prefix_cache": source.prefix_cache,
        "prompt_salt": salt,
        "num_requests": plan.num_requests,
        "max_tokens": plan.max_tokens,
        "options": options.model_dump(),
        "clients": {
            "num_clients": runner.placement.num_clients,
            "node_ids": runner.client_nodes,
            "beside_replicas": runner.placement.beside_replicas,
        },
        "versions": versions(),
        "search": search,
        "points": points,
    }
    return Measured(summary=summary, rows=rows)


def check_outcome(summary: Mapping[str, Any], options: LoadtestOptions, output: Path) -> None:
    """Check that the service failed no more requests than allowed.

    A search offers loads in order to see them fail: it only has to find something.

    Raises:
        EvaluationError: It failed more, or answered more without text, or completed none at some
            point, or no load passed.
    """
    search = summary["search"]
    if search is None:
        _check_errors(summary["points"], options, output)
    elif (search["load"] if search["kind"] == "saturation" else search["rate"]) is None:
        raise EvaluationError(
            "no load was within the limits",
            where=output / "summary.json",
            got=search["reason"],
            hint="begin with a lower load, or allow more",
        )


def _check_errors(points: Sequence[dict[str, Any]], options: LoadtestOptions, output: Path) -> None:
    for point in points:
        problem = over_budget(point, options)
        if problem is None and point["completed"]:
            continue
        load = Load(concurrency=point["concurrency"], rate=point["offered_rate"])
        classes = ", ".join(f"{kind} {count}" for kind, count in point["errors"].items())
        rows = output / "requests.parquet"
        raise EvaluationError(
            f"{problem or 'no request completed'} at {load}",
            where=rows,
            got=classes,
            expected=f"at most {options.max_error_rate:.1%} failed by the service, and at most "
            f"{options.max_empty_rate:.1%} without text",
            hint=_first_detail(rows, point["errors"]),
        )


def _first_detail(rows: Path, errors: Mapping[str, int]) -> str:
    """Quote what was said with the first failure of the most frequent kind."""
    worst = max(errors, key=lambda kind: errors[kind], default="")
    table = pq.read_table(rows, columns=["error_detail"], filters=[("error", "=", worst)])
    said = next(filter(None, table["error_detail"].to_pylist()), None)
    return f"the first {worst}: {said}" if said else "the column error_detail says more"
