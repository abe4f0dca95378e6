"""Run a load test: open the target, offer every load, write requests.parquet and summary.json."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from expo_ray.checkpoints.storages.local_output import require_writable_folder
from expo_ray.cluster import ray_session
from expo_ray.lazy import imported_beside
from expo_ray.loadtests.measuring import check_outcome, measure
from expo_ray.loadtests.options import LoadtestOptions
from expo_ray.loadtests.plan import Find, make_plan
from expo_ray.loadtests.target import is_url, open_target
from expo_ray.progress import NullProgress, Progress
from expo_ray.serving.alpha_setting import RulesLike


def loadtest(
    target: str,
    *,
    prompts: str | Path,
    output: str | Path,
    concurrency: Sequence[int] = (),
    rate: Sequence[float] = (),
    trace: str | Path | None = None,
    find: Find | None = None,
    initial: str | None = None,
    alpha: float | None = None,
    alpha_rules: RulesLike | None = None,
    extra_tensors: Sequence[str] = (),
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
        trace: A recorded trace to replay, as one more point; see `expo_ray.loadtests.trace`.
        find: `saturation` goes on from the given loads, twice as much each time, until throughput
            grows no more; `slo` searches the highest rate at which the limits of the options are
            met, from the one rate given. None offers the given loads and no other.
        initial: theta0, to serve `target` extrapolated by `alpha`.
        alpha: See `initial`; beside rules, for tensors without one.
        alpha_rules: Alpha by part of the model: a YAML file as for `extrapolate`, or its table.
        extra_tensors: `copy:PATTERN`: tensors that one side may lack, as for `extrapolate`.
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
            point, or no load was within the limits; both files are written before.
        ServingError: The service does not answer.

    Example:
        >>> summary = expo_ray.loadtest(
        ...     "dpo",
        ...     prompts="p.jsonl",
        ...     output="lt",
        ...     concurrency=[1, 4],
        ...     num_requests=8,
        ...     max_tokens=8,
        ... )
        >>> [(point["concurrency"], point["completed"]) for point in summary["points"]]
        [(1, 8), (4, 8)]
        >>> summary["points"][1]["p99_ttft_ms"] > 0
        True
    """
    output = require_writable_folder(output)
    plan = make_plan(
        prompts=prompts,
        concurrency=concurrency,
        rate=rate,
        trace=trace,
        find=find,
        num_requests=num_requests,
        max_tokens=max_tokens,
        options=options,
    )
    with (
        nullcontext() if is_url(target) else imported_beside("torch"),
        ray_session(address),
        open_target(
            target,
            initial=initial,
            alpha=alpha,
            alpha_rules=alpha_rules,
            extra_tensors=extra_tensors,
            options=plan.options,
        ) as endpoint,
    ):
        measured = measure(endpoint, plan, target=target, progress=progress or NullProgress())
    measured.write(output)
    check_outcome(measured.summary, plan.options, output)
    return measured.summary
