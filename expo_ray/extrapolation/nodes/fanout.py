"""Where tasks run: in this process, or on Ray. The only file of this room that imports Ray.

Ray carries paths, offsets and receipts; weights never pass through it.
"""

from __future__ import annotations

import errno
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

from expo_ray.cluster import (
    INLINE,
    NoAnswer,
    NodeWatch,
    cancel_unfinished,
    file_name_of,
    is_asked_for,
    is_connected,
    is_one_node,
    may_grow,
    ray_session,
    resolve_address,
    run_noted,
    run_on_nodes,
    worker_nodes,
)
from expo_ray.errors import ExpoError, ShardError
from expo_ray.extrapolation.nodes.batches import Batch, batch_tasks, max_batches
from expo_ray.extrapolation.nodes.capacity import (
    WORKER_MEMORY_BYTES,
    refuse_too_big_for_here,
    refuse_too_big_for_nodes,
)
from expo_ray.extrapolation.nodes.node_check import (
    NodeCheck,
    leave_token,
    probe_node,
    refuse_problems,
    remove_tokens,
    unseen_outputs,
)
from expo_ray.extrapolation.nodes.place import is_sooner_here, num_threads_here
from expo_ray.extrapolation.nodes.trial_load import (
    LoadingCheck,
    LoadingRequest,
    check_loading,
    imported_meanwhile,
)
from expo_ray.extrapolation.shards.tasks import ShardReport, ShardTask
from expo_ray.lazy import quick_imports
from expo_ray.remote_errors import brought_home

POLL_SECONDS = 0.5
LOADING_TIMEOUT_SECONDS = 300
DRIVER = "driver"


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


def place_of(address: str | None, tasks: Sequence[ShardTask]) -> str:
    """Return the address at which some tasks are done.

    Args:
        address: As it was asked for: that is taken, as `RAY_ADDRESS` and a connection that stands
            are. None leaves the choice.
        tasks: All of them.
    """
    is_free = not is_asked_for(address) and not is_connected()
    return INLINE if is_free and is_sooner_here(tasks) else resolve_address(address)


def one_session(address: str | None, tasks: Sequence[ShardTask]) -> AbstractContextManager[None]:
    """Keep one Ray over several runs of tasks, such as two passes: a local one takes seconds.

    Args:
        address: As for `run_tasks`.
        tasks: Of all of them.
    """
    is_inline = place_of(address, tasks) == INLINE
    return nullcontext() if is_inline else ray_session(address)


def run_tasks(
    tasks: Sequence[ShardTask],
    *,
    address: str | None,
    loading: LoadingRequest | None = None,
    check: NodeCheck | None = None,
    begin: Callable[[], None] = lambda: None,
    advance: Callable[[float], None] = lambda _: None,
    running_bytes: Callable[[], int] = lambda: 0,
    finished: Callable[[int, ShardReport], None] = lambda *_: None,
) -> tuple[list[ShardReport], LoadingCheck | None]:
    """Run all tasks and wait for them.

    Args:
        tasks: The work; the reports come back in the same order.
        address: `inline`, or where Ray is; see `ray_session`. None takes what is done sooner.
        loading: What transformers shall try to load meanwhile.
        check: What every node must see before the work starts.
        begin: Called when the nodes passed the check, before the first task.
        advance: Called with numbers of input bytes that are done.
        running_bytes: Estimates the input bytes that unfinished tasks have done so far.
        finished: Called in this process with the place and the report of each task that is done.

    Returns:
        The reports and the loading check.

    Raises:
        ExpoError: The first task that failed; the others are cancelled.
        ConfigError: Ray cannot be reached, a node does not see inputs or outputs, or a task needs
            more memory than any of them has.
    """
    if place_of(address, tasks) == INLINE:
        tasks = [replace(task, num_threads=num_threads_here(task.num_threads)) for task in tasks]
        refuse_too_big_for_here(tasks)
        begin()
        done = Advance(advance)
        reports = []
        base = 0
        with imported_meanwhile(loading):
            for index, task in enumerate(tasks):
                reports.append(_run_here(task, done, base))
                finished(index, reports[-1])
                base += task.shard.input_bytes
        return reports, check_loading(loading) if loading else None
    if not tasks and not loading:
        return [], None
    with ray_session(address):
        refuse_too_big_for_nodes(tasks, worker_nodes(), may_grow=may_grow())
        if check is not None and not is_one_node():
            _require_fit_nodes(check)
        begin()
        return _run_on_ray(tasks, loading, Advance(advance), running_bytes, finished)


def check_nodes(check: NodeCheck) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Probe every node of the connected cluster.

    Returns:
        The problems of each node, in words (an empty list where there is none); and of those that
        did not answer, why.
    """
    problems: dict[str, list[str]] = {}
    silent: dict[str, str] = {}
    try:
        leave_token(check, DRIVER)
        for node, outcome in run_on_nodes(probe_node, check).items():
            if isinstance(outcome, NoAnswer):
                silent[node] = outcome.reason
                continue
            texts = [outcome] if isinstance(outcome, str) else list(outcome)
            problems[node] = texts or unseen_outputs(check, file_name_of(node))
    except OSError as error:
        problems = {DRIVER: [f"the output cannot be written to: {error.strerror or error}"]}
    finally:
        remove_tokens(check)
    return problems, silent


def _require_fit_nodes(check: NodeCheck) -> None:
    problems, silent = check_nodes(check)
    refuse_problems(problems)
    if silent:
        raise ShardError(
            "a node of the cluster did not answer",
            where=", ".join(silent),
            got="; ".join(silent.values()),
            hint="run the same command again; `ray status` tells which nodes live",
        )


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
        answers = {n: a for n, a in found.items() if not isinstance(a, NoAnswer)}
        problems, silent = check_nodes(check)
        silent |= {n: a.reason for n, a in found.items() if isinstance(a, NoAnswer)}
        raised = {n: a for n, a in found.items() if isinstance(a, str)}
        return answers, problems | {n: [text] for n, text in (silent | raised).items()}


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

    # A driver without tasks of its own needs no torch, which takes 200 MB and seconds.
    with quick_imports():
        from expo_ray.extrapolation.shards.attempts import attempt_shard

    try:
        return attempt_shard(task, on_total)
    except OSError as error:
        raise _os_error(task, error) from error


def _run_on_ray(
    tasks: Sequence[ShardTask],
    loading: LoadingRequest | None,
    done: Advance,
    running_bytes: Callable[[], int],
    finished: Callable[[int, ShardReport], None],
) -> tuple[list[ShardReport], LoadingCheck | None]:
    import ray
    from ray.exceptions import RayError

    # Ray would try the same again, and out of memory without end: see `next_attempt`.
    remote = ray.remote(num_cpus=1, max_retries=0, scheduling_strategy="SPREAD")(run_noted)
    sizes = [task.shard.input_bytes for task in tasks]
    limit = max_batches(tasks)
    # Big batches first: a big one that starts last would keep the others waiting.
    batches = sorted(batch_tasks(tasks), key=lambda batch: -sum(sizes[i] for i in batch))
    queue = deque(Batch(batch, tuple(tasks[i] for i in batch)) for batch in batches)
    pending: dict[Any, Batch] = {}
    trial: Any = None
    reports: dict[int, ShardReport] = {}
    finished_bytes = 0
    watch = NodeWatch()
    try:
        while queue or pending:
            for _ in range(len(queue)):
                batch = queue.popleft()
                if len(pending) < limit and batch.not_before <= time.monotonic():
                    pending[_submit(watch, remote, batch)] = batch
                else:
                    queue.append(batch)
            trial = trial or _submit_trial(watch, loading)
            ready = _wait(list(pending))
            for ref in ready:
                batch = pending.pop(ref)
                watch.forget(ref)
                try:
                    outcome = ray.get(ref, timeout=60)
                except RayError as error:
                    queue.append(next_attempt(batch, error))
                    continue
                if isinstance(outcome, ExpoError):
                    raise outcome
                for index, report in zip(batch.indices, outcome, strict=True):
                    reports[index] = report
                    finished(index, report)
                finished_bytes += sum(sizes[i] for i in batch.indices)
            for ref, has_begun in watch.lost().items():
                if ref is trial:
                    trial = None
                else:
                    queue.append(_after_node(pending.pop(ref), has_begun=has_begun))
            # An estimate from sizes of files, headers among them; the bar must end at its total.
            unfinished_bytes = sum(sizes[i] for batch in pending.values() for i in batch.indices)
            done.to(finished_bytes + min(running_bytes(), unfinished_bytes))
        trial = trial or _submit_trial(watch, loading)
        check = None if trial is None else _loading_outcome(watch, trial)
    except RayError as error:
        raise brought_home(
            error,
            "Ray could not finish a task",
            ShardError,
            hint="run the same command again, it continues where it stopped",
        ) from error
    finally:
        watch.close()
        cancel_unfinished([*pending, *([] if trial is None else [trial])])
    return [reports[i] for i in range(len(tasks))], check


def _submit(watch: NodeWatch, remote: Any, batch: Batch) -> Any:
    """Start a batch; after an attempt without memory it asks its node for twice as much."""
    memory_bytes = WORKER_MEMORY_BYTES + max(task.extra_memory_bytes for task in batch.tasks)
    if batch.num_out_of_memory:
        known = (node["Resources"].get("memory", 0) for node in worker_nodes())
        largest = max(known, default=0)
        memory_bytes = max(memory_bytes, int(min(largest, memory_bytes << batch.num_out_of_memory)))
    return watch.submit(remote.options(memory=memory_bytes), run_batch, batch.tasks)


def _submit_trial(watch: NodeWatch, loading: LoadingRequest | None) -> Any:
    """Start the trial load beside the batches: seconds of imports, while they wait for a disk."""
    import ray

    if loading is None:
        return None
    remote = ray.remote(num_cpus=0, max_retries=1)(run_noted)
    return watch.submit(remote, check_loading, loading)


def _wait(refs: list[Any]) -> list[Any]:
    import ray

    if not refs:  # every batch waits for memory
        time.sleep(POLL_SECONDS)
        return []
    ready: list[Any] = ray.wait(refs, timeout=POLL_SECONDS)[0]
    return ready


def _after_node(batch: Batch, *, has_begun: bool) -> Batch:
    """Return the batch as it is tried again after its node was lost.

    Raises:
        ShardError: It was lost too often.
    """
    again = batch.lost() if has_begun else batch
    if again is None:
        raise ShardError(
            "the nodes that worked on a shard were lost again and again",
            where=batch.tasks[0].shard.name,
            hint="run the same command again, it continues where it stopped",
        )
    return again


def next_attempt(batch: Batch, error: Exception) -> Batch:
    """Return the batch as it is tried again after Ray lost it.

    Raises:
        ShardError: Its memory cannot be made smaller.
        RayError: It was lost too often, or trying again is pointless.
    """
    from ray.exceptions import (
        GetTimeoutError,
        LocalRayletDiedError,
        NodeDiedError,
        ObjectLostError,
        OutOfMemoryError,
        WorkerCrashedError,
    )

    if isinstance(error, OutOfMemoryError):
        return batch.out_of_memory()
    lost = (
        WorkerCrashedError,
        NodeDiedError,
        LocalRayletDiedError,
        ObjectLostError,
        GetTimeoutError,  # a result that stayed on a host that is cut off
    )
    again = batch.lost() if isinstance(error, lost) else None
    if again is None:
        raise error
    return again


def _loading_outcome(watch: NodeWatch, ref: Any) -> LoadingCheck:
    """Wait for the trial load; it is advice, so its own failure stops nothing."""
    import ray
    from ray.exceptions import RayError

    deadline = time.monotonic() + LOADING_TIMEOUT_SECONDS
    while not _wait([ref]) and time.monotonic() < deadline:
        if ref in watch.lost():
            return LoadingCheck(status="skipped", note="the trial load ended: its node was lost")
    try:
        check: LoadingCheck = ray.get(ref, timeout=1)
    except RayError as error:
        return LoadingCheck(status="skipped", note=f"the trial load ended: {type(error).__name__}")
    return check


def _os_error(task: ShardTask, error: OSError) -> ShardError:
    is_full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    folder = f"{task.outputs[0].folder}/" if task.outputs else ""
    again = "run the same command again, it continues"
    return ShardError(
        "the disk is full" if is_full else "a file could not be read or written",
        where=f"{error.filename or folder + task.shard.name} on {os.uname().nodename}",
        got=error.strerror or str(error),
        hint=f"free some space and {again}" if is_full else f"{again} where it stopped",
    )
