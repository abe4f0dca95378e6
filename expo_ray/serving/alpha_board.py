"""The one place that knows a service's current alpha, and that leads a change of it.

A change has two phases. In "prepare" every replica stops admitting requests, waits for those
inside, and loads the new weights; only when all who are to go on report the same digest does
"steady" name the new generation and let requests in again. Replicas report what they hold and are
told what to hold, so one that restarts, or comes later, ends at the current alpha by the same way.
Light: no torch, no vLLM.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from typing import Any, Literal

import ray
from ray.exceptions import RayActorError, RayError

from expo_ray.errors import ExpoError, ServingError
from expo_ray.serving.alpha_setting import AlphaSetting, setting_fields

NAMESPACE = "expo-ray"
_POLL_SECONDS = 1.0
_DOUBT_SECONDS = 3.0
_SILENT_SECONDS = 30.0
_RECOVERY_SECONDS = 3.0
_WATCH_SECONDS = 2.0
_ORPHAN_LOOKS = 3


@dataclass(frozen=True, kw_only=True, slots=True)
class Target:
    """What every replica shall hold."""

    sequence: int
    """Grows with every order."""
    phase: Literal["prepare", "steady"]
    generation: int
    """Grows with every change of alpha."""
    alpha: AlphaSetting
    drain_seconds: float = 0.0
    """How long requests inside may take to finish."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a replica holds, in answer to an order."""

    sequence: int
    generation: int
    alpha: AlphaSetting
    weights_digest: str | None
    error: ExpoError | None = None
    has_drained: bool = True


@dataclass(kw_only=True, slots=True)
class _Member:
    actor: Any
    report: Report
    seen: float


class AlphaBoard:
    """An actor. All methods run on one event loop.

    Args:
        alpha: What the service was started with.
        app_name: The Serve application; the board ends itself when nobody there needs it.
    """

    def __init__(self, alpha: AlphaSetting, app_name: str) -> None:
        self._app_name = app_name
        self._watching: asyncio.Task[None] | None = None
        self._target = Target(sequence=1, phase="steady", generation=1, alpha=alpha)
        self._members: dict[str, _Member] = {}
        self._moved = asyncio.Condition()
        restarted = ray.get_runtime_context().was_current_actor_reconstructed
        # What was current before a crash is known from the replicas, which report within a second.
        self._ready_at = time.monotonic() + (_RECOVERY_SECONDS if restarted else 0)

    async def join(self) -> Target:
        """Return what a new replica shall load; waits while alpha is being changed."""
        self._keep_watch()
        await asyncio.sleep(self._ready_at - time.monotonic())
        async with self._moved:
            await self._moved.wait_for(lambda: self._target.phase == "steady")
        return self._target

    async def enter(self, name: str, report: Report, actor: Any) -> bool:
        """Take a replica in, if what it has loaded is still what is current."""
        current = self._target
        if current.phase != "steady" or current.generation != report.generation:
            return False
        self._members[name] = _Member(actor=actor, report=report, seen=time.monotonic())
        return True

    async def follow(self, name: str, report: Report, actor: Any) -> Target | None:
        """Take a report and return the next order, or the last one again after a second.

        Returns:
            None for a replica that is no member: it has to join again before it answers.
        """
        self._keep_watch()
        if name not in self._members:
            if time.monotonic() > self._ready_at:
                return None
            self._members[name] = _Member(actor=actor, report=report, seen=time.monotonic())
            self._recover(report)
        self._members[name].report = report
        await self.beat(name)
        async with self._moved:
            self._moved.notify_all()
            try:
                async with asyncio.timeout(_POLL_SECONDS):
                    await self._moved.wait_for(lambda: self._target.sequence > report.sequence)
            except TimeoutError:
                pass
        return self._target if name in self._members else None

    def _recover(self, report: Report) -> None:
        """Learn from a replica what was current before this actor was restarted."""
        target = self._target
        if report.error is None and report.generation > target.generation:
            target = replace(target, generation=report.generation, alpha=report.alpha)
        # A new order for all: some may wait for the end of a change that nobody leads any more.
        self._target = replace(target, sequence=max(target.sequence, report.sequence) + 1)

    async def beat(self, name: str) -> None:
        """Note that a replica lives, while it is busy with an order."""
        if name in self._members:
            self._members[name].seen = time.monotonic()

    async def state(self) -> dict[str, Any]:
        """Return the current alpha, its generation, and what each replica holds."""
        await self._drop_lost()
        return {
            **setting_fields(self._target.alpha),
            "generation": self._target.generation,
            "changing": self._target.phase != "steady",
            "replicas": {
                name: {
                    **setting_fields(member.report.alpha),
                    "generation": member.report.generation,
                    "weights_digest": member.report.weights_digest,
                }
                for name, member in sorted(self._members.items())
            },
        }

    def _keep_watch(self) -> None:
        if self._watching is None:
            self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        """End this actor when its service is gone: a Serve config file has no one to do it."""
        num_looks = 0
        while num_looks < _ORPHAN_LOOKS:
            await asyncio.sleep(_WATCH_SECONDS)
            num_looks = num_looks + 1 if await self._is_orphan() else 0
        ray.kill(ray.get_runtime_context().current_actor)

    async def _is_orphan(self) -> bool:
        """Say whether no replica is mine, though the application is gone or runs well."""
        for member in [*self._members.values()]:
            if not await _is_dead(member):
                return False
        from ray import serve  # seconds to import: only here

        try:
            status = await asyncio.to_thread(serve.status)
        except RayError:  # the controller is being restarted
            return False
        app = status.applications.get(self._app_name)
        # Replicas that are all being started are none yet; a new version has a board of its own.
        return app is None or app.status == "RUNNING"

    async def change(self, alpha: AlphaSetting, drain_seconds: float) -> ExpoError | None:
        """Bring all replicas to another alpha.

        Args:
            alpha: The new one.
            drain_seconds: How long requests that are being answered may take.

        Returns:
            None when all hold it; else why the old alpha stays.
        """
        before = self._target
        if before.phase != "steady":
            return ServingError("alpha is being changed already")
        if before.alpha == alpha:
            return None
        if not self._members:
            return ServingError("no replica is ready")
        after = replace(
            before, generation=before.generation + 1, alpha=alpha, drain_seconds=drain_seconds
        )
        reports = await self._order(replace(after, phase="prepare"))
        problem = _problem(reports)
        await self._settle(before if problem else after)
        return problem

    async def _settle(self, target: Target) -> None:
        """Let requests in again; who does not hold the target's weights is replaced."""
        if target.alpha == self._target.alpha:
            self._drop([n for n, m in self._members.items() if m.report.error is not None])
        reports = await self._order(replace(target, phase="steady"))
        self._drop([name for name, report in reports.items() if report.error is not None])

    async def _order(self, target: Target) -> dict[str, Report]:
        """Publish a target and wait for all reports; replicas that fall silent are replaced."""
        sequence = self._target.sequence + 1
        async with self._moved:
            self._target = replace(target, sequence=sequence)
            self._moved.notify_all()
        while any(m.report.sequence < sequence for m in self._members.values()):
            async with self._moved:
                try:
                    async with asyncio.timeout(_POLL_SECONDS):
                        await self._moved.wait()
                except TimeoutError:
                    pass
            await self._drop_lost()
        return {name: member.report for name, member in self._members.items()}

    async def _drop_lost(self) -> None:
        self._drop([name for name, m in [*self._members.items()] if await _is_lost(m)])

    def _drop(self, names: list[str]) -> None:
        for name in names:
            # Killed, not asked: it must not answer again. Serve starts another in its place.
            member = self._members.pop(name, None)
            if member is not None:
                ray.kill(member.actor)


async def _is_lost(member: _Member) -> bool:
    """Say whether a replica is dead, or has been silent for so long that it might as well be."""
    silent_seconds = time.monotonic() - member.seen
    if silent_seconds < _DOUBT_SECONDS:
        return False
    return await _is_dead(member) or silent_seconds > _SILENT_SECONDS


async def _is_dead(member: _Member) -> bool:
    try:
        async with asyncio.timeout(_POLL_SECONDS):
            await member.actor.__ray_ready__.remote()
    except RayActorError:
        return True
    except TimeoutError:
        pass
    return False


def _problem(reports: dict[str, Report]) -> ExpoError | None:
    """Return why a prepared change must not be made; a single failed replica is no reason."""
    if not reports:
        return ServingError("no replica is left", hint="they are being replaced: try again")
    for report in reports.values():
        if report.error is not None and not report.has_drained:
            return report.error
    good = [report for report in reports.values() if report.error is None]
    if not good:
        return next(iter(reports.values())).error
    digests = {report.weights_digest for report in good}
    if len(digests) > 1:
        return ServingError("replicas report different weights", got=sorted(map(str, digests)))
    return None


def _board_name(app_name: str, version: str) -> str:
    return f"expo-ray-alpha-{app_name}-{version}"


def find_or_start_board(app_name: str, alpha: AlphaSetting, *, version: str = "") -> Any:
    """Return the board of a Serve application.

    Args:
        app_name: The application.
        alpha: Current alpha where there is no board yet.
        version: Of what the application serves: one that is deployed anew with another model or
            alpha starts there, and not where clients had brought its predecessor.
    """
    # Detached: it outlives the replica that happens to come first.
    return (
        ray.remote(AlphaBoard)
        .options(
            name=_board_name(app_name, version),
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
        )
        .remote(alpha, app_name)
    )


def stop_board(app_name: str, *, version: str = "") -> None:
    """End the board of a Serve application, if it has one."""
    try:
        board = ray.get_actor(_board_name(app_name, version), namespace=NAMESPACE)
    except ValueError:
        return
    ray.kill(board)
