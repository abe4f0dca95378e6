"""Where tasks run: in this process, or on Ray. The only file of this room that imports Ray.

Ray carries paths, offsets and receipts; weights never pass through it.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from expo_ray.checkpoints.hub_storage import SCHEME as HUB_SCHEME
from expo_ray.cluster import INLINE, ray_session, resolve_address
from expo_ray.errors import ExpoError, ShardError
from expo_ray.extrapolation.attempts import attempt_shard, with_less_memory
from expo_ray.extrapolation.loading import LoadingCheck, check_loading
from expo_ray.extrapolation.node_check import (
    NodeCheck,
    leave_token,
    probe_node,
    refuse_problems,
    remove_tokens,
    unseen_outputs,
)
from expo_ray.extrapolation.tasks import TASK_MEMORY_BYTES, ShardReport, ShardTask

# Beside its buffers a worker holds the imports of torch and Ray.
WORKER_MEMORY_BYTES = TASK_MEMORY_BYTES + 512 * 1024 * 1024
MAX_RETRIES = 3
MEMORY_DELAY_SECONDS = 2.0
# A worker needs seconds to import torch: less work than this is not worth one of its own.
MIN_BATCH_BYTES = 128 * 1024 * 1024
POLL_SECONDS = 0.5
LOADING_TIMEOUT_SECONDS = 300
NODE_TIMEOUT_SECONDS = 120
# The Hub limits the requests of a user: all tasks together have at most so many open.
MAX_HUB_REQUESTS = 64
DRIVER = "driver"

logger = logging.getLogger(__name__)


class Advance:
    """Passes a growing total on to a progress bar."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        self._advance = advance
        self._reported = 0

    def to(self, total: int) -> None:
        """Report that so much is done in all; a total that shrinks is ignored."""
        if total > self._reported:
            self._advance(total - self._reported)
            self._reported = total


def run_tasks(
    tasks: Sequence[ShardTask],
    *,
    address: str | None,
    loading_of: str | None = None,
    check: NodeCheck | None = None,
    begin: Callable[[], None] = lambda: None,
    advance: Callable[[float], None] = lambda _: None,
    running_bytes: Callable[[], int] = lambda: 0,
) -> tuple[list[ShardReport], LoadingCheck | None]:
    """Run all tasks and wait for them.

    Args:
        tasks: The work; the reports come back in the same order.
        address: `inline`, or where Ray is; see `ray_session`.
        loading_of: A checkpoint whose names and shapes transformers shall try to load meanwhile.
        check: What every node must see before the work starts.
        begin: Called when the nodes passed the check, before the first task.
        advance: Called with numbers of input bytes that are done.
        running_bytes: Returns the input bytes that unfinished tasks have done so far.

    Returns:
        The reports and the loading check.

    Raises:
        ExpoError: The first task that failed; the others are cancelled.
        ConfigError: Ray cannot be reached, or a node does not see inputs or outputs.
    """
    if resolve_address(address) == INLINE:
        begin()
        done = Advance(advance)
        reports = []
        base = 0
        for task in tasks:
            reports.append(_run_here(task, done, base))
            base += task.shard.input_bytes
        return reports, check_loading(loading_of) if loading_of else None
    if not tasks and not loading_of:
        return [], None
    with ray_session(address):
        if check is not None and not _is_one_node():
            refuse_problems(check_nodes(check))
        begin()
        return _run_on_ray(tasks, loading_of, Advance(advance), running_bytes)


def check_nodes(check: NodeCheck) -> dict[str, list[str]]:
    """Probe every node of the connected cluster.

    Returns:
        The problems of each node, in words; an empty list where there is none.
    """
    try:
        leave_token(check, DRIVER)
        found = run_on_nodes(probe_node, check)
        problems = {}
        for node, outcome in found.items():
            texts = [outcome] if isinstance(outcome, str) else list(outcome)
            problems[node] = texts or unseen_outputs(check, _file_name(node))
        return problems
    except OSError as error:
        return {DRIVER: [f"the output cannot be written to: {error.strerror or error}"]}
    finally:
        remove_tokens(check)


def call_on_nodes(
    function: Callable[[Any, str], Any], argument: Any, check: NodeCheck, *, address: str | None
) -> tuple[dict[str, Any], dict[str, list[str]]]:
    """Call a function on every node, and probe them; `inline` asks this process alone.

    Returns:
        What the function returned, and the problems, both by node.

    Raises:
        ConfigError: Ray cannot be reached.
    """
    if resolve_address(address) == INLINE:
        try:
            leave_token(check, DRIVER)
            problems = {DRIVER: probe_node(check, "inline")}
        except OSError as error:
            problems = {DRIVER: [f"the output cannot be written to: {error.strerror or error}"]}
        finally:
            remove_tokens(check)
        return {DRIVER: function(argument, "inline")}, problems
    with ray_session(address):
        found = run_on_nodes(function, argument)
        problems = {node: [text] for node, text in found.items() if isinstance(text, str)}
        for node, texts in check_nodes(check).items():
            problems.setdefault(node, texts)
        return found, problems


def run_on_nodes(function: Callable[[Any, str], Any], argument: Any) -> dict[str, Any]:
    """Call a function once on every node that can take work, all at the same time.

    Args:
        function: Takes the argument and a name of the node that is fit for a file.
        argument: Sent to all.

    Returns:
        By node what it returned, or in words why it did not.
    """
    import ray
    from ray.exceptions import GetTimeoutError, RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(function)
    refs = {}
    for node in _worker_nodes():
        name = f"{node['NodeManagerHostname']} {node['NodeManagerAddress']} {node['NodeID'][:8]}"
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options = {"num_cpus": 0, "max_retries": 1, "scheduling_strategy": here}
        refs[name] = remote.options(**options).remote(argument, _file_name(name))
    found: dict[str, Any] = {}
    deadline = time.monotonic() + NODE_TIMEOUT_SECONDS
    for name, ref in refs.items():
        try:
            found[name] = ray.get(ref, timeout=max(1.0, deadline - time.monotonic()))
        except GetTimeoutError:
            found[name] = f"no answer within {NODE_TIMEOUT_SECONDS} s"
            ray.cancel(ref, force=True)
        except RayError as error:
            found[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}"
    return found


def _worker_nodes() -> list[dict[str, Any]]:
    import ray

    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    return sorted(nodes, key=lambda node: str(node["NodeID"]))


def _is_one_node() -> bool:
    """Whether the only node is the one of this process, which has read the inputs already."""
    import ray
    from ray.util.client import ray as client

    if client.is_connected():
        return False
    here = ray.get_runtime_context().get_node_id()
    return [node["NodeID"] for node in _worker_nodes()] == [here]


def _file_name(node: str) -> str:
    return node.rpartition(" ")[2]


def batch_tasks(tasks: Sequence[ShardTask]) -> list[tuple[int, ...]]:
    """Group the indices of tasks that one Ray task does one after the other."""
    batches: list[list[int]] = []
    filled = MIN_BATCH_BYTES
    for index, task in enumerate(tasks):
        if filled >= MIN_BATCH_BYTES:
            batches.append([])
            filled = 0
        batches[-1].append(index)
        filled += task.shard.input_bytes
    return [tuple(batch) for batch in batches]


def max_batches(tasks: Sequence[ShardTask]) -> int:
    """Return how many batches may run at a time in the whole cluster."""
    threads = [t.num_threads for t in tasks if HUB_SCHEME in t.initial_uri + t.aligned_uri]
    return max(1, MAX_HUB_REQUESTS // max(threads)) if threads else max(1, len(tasks))


def run_batch(tasks: Sequence[ShardTask]) -> list[ShardReport] | ExpoError:
    """Run a batch; a deliberate error is a value, so that Ray neither wraps nor retries it."""
    try:
        return [_run_here(task) for task in tasks]
    except ExpoError as error:
        return error


def _run_here(task: ShardTask, done: Advance | None = None, base: int = 0) -> ShardReport:
    def on_total(num_bytes: int) -> None:
        if done is not None:
            done.to(base + num_bytes)

    try:
        return attempt_shard(task, on_total)
    except OSError as error:
        raise _os_error(task, error) from error


def _run_on_ray(
    tasks: Sequence[ShardTask],
    loading_of: str | None,
    done: Advance,
    running_bytes: Callable[[], int],
) -> tuple[list[ShardReport], LoadingCheck | None]:
    import ray
    from ray.exceptions import RayError

    loading = None
    if loading_of:
        loading = ray.remote(check_loading).options(num_cpus=0, max_retries=1).remote(loading_of)
    sizes = [task.shard.input_bytes for task in tasks]
    limit = max_batches(tasks)
    # Big batches first: a big one that starts last would keep the others waiting.
    batches = sorted(batch_tasks(tasks), key=lambda batch: -sum(sizes[i] for i in batch))
    queue = deque(Batch(batch, tuple(tasks[i] for i in batch)) for batch in batches)
    pending: dict[Any, Batch] = {}
    reports: dict[int, ShardReport] = {}
    finished_bytes = 0
    try:
        while queue or pending:
            for _ in range(len(queue)):
                batch = queue.popleft()
                if len(pending) < limit and batch.not_before <= time.monotonic():
                    pending[_submit(batch)] = batch
                else:
                    queue.append(batch)
            ready = _wait(list(pending))
            for ref in ready:
                batch = pending.pop(ref)
                try:
                    outcome = ray.get(ref, timeout=60)
                except RayError as error:
                    queue.append(next_attempt(batch, error))
                    continue
                if isinstance(outcome, ExpoError):
                    raise outcome
                reports.update(zip(batch.indices, outcome, strict=True))
                finished_bytes += sum(sizes[i] for i in batch.indices)
            done.to(finished_bytes + running_bytes())
        check = None
        if loading is not None:
            check = _loading_outcome(loading)
    except RayError as error:
        raise ShardError(
            "Ray could not finish a task",
            got=str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__,
            hint="run the same command again, it continues where it stopped",
        ) from error
    finally:
        for ref in [*pending, *([loading] if loading is not None else [])]:
            ray.cancel(ref)
    return [reports[i] for i in range(len(tasks))], check


@dataclass(frozen=True, slots=True)
class Batch:
    """Tasks that one Ray task does, and what became of earlier attempts at them."""

    indices: tuple[int, ...]
    tasks: tuple[ShardTask, ...]
    num_lost: int = 0
    num_out_of_memory: int = 0
    not_before: float = 0.0


def _submit(batch: Batch) -> Any:
    """Start a batch; after an attempt without memory it asks its node for twice as much."""
    import ray

    memory_bytes = WORKER_MEMORY_BYTES + max(task.extra_memory_bytes for task in batch.tasks)
    if batch.num_out_of_memory:
        largest = max(node["Resources"].get("memory", 0) for node in _worker_nodes())
        memory_bytes = max(memory_bytes, int(min(largest, memory_bytes << batch.num_out_of_memory)))
    remote = ray.remote(run_batch).options(
        num_cpus=1,
        memory=memory_bytes,
        # Ray would try the same again, and out of memory without end: see `next_attempt`.
        max_retries=0,
        scheduling_strategy="SPREAD",
    )
    return remote.remote(batch.tasks)


def _wait(refs: list[Any]) -> list[Any]:
    import ray

    if not refs:  # every batch waits for memory
        time.sleep(POLL_SECONDS)
        return []
    ready: list[Any] = ray.wait(refs, timeout=POLL_SECONDS)[0]
    return ready


def next_attempt(batch: Batch, error: Exception) -> Batch:
    """Return the batch as it is tried again after Ray lost it.

    Raises:
        ShardError: Its memory cannot be made smaller.
        RayError: It was lost too often, or trying again is pointless.
    """
    from ray.exceptions import (
        LocalRayletDiedError,
        NodeDiedError,
        ObjectLostError,
        OutOfMemoryError,
        WorkerCrashedError,
    )

    if isinstance(error, OutOfMemoryError):
        delay = MEMORY_DELAY_SECONDS * 2**batch.num_out_of_memory
        what = "Ray killed the worker because its node was short of memory"
        return replace(
            batch,
            tasks=tuple(with_less_memory(task, what) for task in batch.tasks),
            num_out_of_memory=batch.num_out_of_memory + 1,
            not_before=time.monotonic() + delay,
        )
    lost = (WorkerCrashedError, NodeDiedError, LocalRayletDiedError, ObjectLostError)
    if not isinstance(error, lost) or batch.num_lost >= MAX_RETRIES:
        raise error
    logger.warning("a worker was lost, its %d shards start again", len(batch.tasks))
    return replace(batch, num_lost=batch.num_lost + 1)


def _loading_outcome(ref: Any) -> LoadingCheck:
    """Wait for the trial load; it is advice, so its own failure stops nothing."""
    import ray
    from ray.exceptions import RayError

    try:
        check: LoadingCheck = ray.get(ref, timeout=LOADING_TIMEOUT_SECONDS)
    except RayError as error:
        return LoadingCheck(status="skipped", note=f"the trial load ended: {type(error).__name__}")
    return check


def _os_error(task: ShardTask, error: OSError) -> ShardError:
    return ShardError(
        "a file could not be read or written",
        where=f"{error.filename or task.shard.name} on {os.uname().nodename}",
        got=error.strerror or str(error),
        hint="run the same command again, it continues where it stopped",
    )
