"""The one place that knows a service's current alpha, and that leads a change of it.

A change has two phases. In "prepare" every replica stops admitting requests, waits for those
inside, and loads the new weights; only when all who are to go on report the same digest does
"steady" name the new generation and let requests in again. Replicas report what they hold and are
told what to hold, so one that restarts, or comes later, ends at the current alpha by the same way.
What is current is remembered outside, too: neither the board nor the replicas need live for it.
Light: no torch, no vLLM.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.exceptions import RayActorError

from expo_ray.errors import ExpoError, ServingError
from expo_ray.serving.alpha_memory import NAMESPACE, AlphaMemory, board_name
from expo_ray.serving.alpha_orders import Report, Target, problem_of
from expo_ray.serving.alpha_setting import AlphaSetting, setting_fields
from expo_ray.serving.alpha_watch import patience_seconds

_POLL_SECONDS = 1.0
_DOUBT_SECONDS = 3.0
_SILENT_SECONDS = 30.0
_RECOVERY_SECONDS = 3.0
_WATCH_SECONDS = 2.0


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
        version: Of what the application serves.
    """

    def __init__(self, alpha: AlphaSetting, app_name: str, version: str) -> None:
        self._service = (app_name, version)
        self._memory = AlphaMemory(board_name(app_name, version))
        known = self._memory.recall()
        generation, current = known or (1, alpha)
        self._target = Target(sequence=1, phase="steady", generation=generation, alpha=current)
        # Replicas that followed a board before this one report within a second.
        self._ready_at = time.monotonic() + (_RECOVERY_SECONDS if known else 0)
        if known is None:
            self._memory.keep(generation, current)
        self._members: dict[str, _Member] = {}
        self._dropped: set[str] = set()
        self._moved = asyncio.Condition()
        self._needed_at = time.monotonic()
        self._watching: asyncio.Task[None] | None = None
        self._changing: asyncio.Task[ExpoError | None] | None = None

    async def join(self) -> Target:
        """Return what a new replica shall load; waits while alpha is being changed."""
        self._keep_watch()
        self._needed_at = time.monotonic()
        await self._until_steady()
        return self._target

    async def _until_steady(self) -> None:
        async with self._moved:
            await self._moved.wait_for(lambda: self._target.phase == "steady")

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
            None for a replica that was dropped: it must not answer again.
        """
        self._keep_watch()
        if name in self._dropped:
            return None
        if name not in self._members:
            # This actor was restarted. A change counts on those with whom it began.
            await self._until_steady()
            if report.sequence >= self._target.sequence:
                # Some may wait for the end of a change that nobody leads any more.
                self._target = replace(self._target, sequence=report.sequence + 1)
        self._members[name] = _Member(actor=actor, report=report, seen=time.monotonic())
        is_answer = self._target.phase == "steady" and report.sequence == self._target.sequence
        if is_answer and report.error is not None:
            self._drop([name])  # there is no other alpha that it could go back to
        async with self._moved:
            self._moved.notify_all()
            try:
                async with asyncio.timeout(_POLL_SECONDS):
                    await self._moved.wait_for(lambda: self._target.sequence > report.sequence)
            except TimeoutError:
                pass
        return self._target if name in self._members else None

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
            "changing": self._changing is not None,
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
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            patience = await self._patience()
            if patience is None:
                self._needed_at = time.monotonic()
            elif time.monotonic() - self._needed_at > patience:
                break
        self._memory.forget()
        ray.kill(ray.get_runtime_context().current_actor)

    async def _patience(self) -> float | None:
        for member in [*self._members.values()]:
            if not await _is_dead(member):
                return None
        return await asyncio.to_thread(patience_seconds, *self._service)

    async def change(self, alpha: AlphaSetting, drain_seconds: float) -> ExpoError | None:
        """Bring all replicas to another alpha. Goes on to its end though the caller go away.

        Args:
            alpha: The new one.
            drain_seconds: How long requests that are being answered may take.

        Returns:
            None when all hold it; else why the old alpha stays.
        """
        await asyncio.sleep(self._ready_at - time.monotonic())
        before = self._target
        if self._changing is not None:
            return ServingError("alpha is being changed already")
        if before.alpha == alpha:
            return None
        if not self._members:
            return ServingError("no replica is ready")
        after = replace(
            before, generation=before.generation + 1, alpha=alpha, drain_seconds=drain_seconds
        )
        # A client that goes away cancels this call; closed gates must not outlast it.
        self._changing = asyncio.create_task(self._change(before, after))
        return await asyncio.shield(self._changing)

    async def _change(self, before: Target, after: Target) -> ExpoError | None:
        target = before
        try:
            problem = problem_of(await self._order(replace(after, phase="prepare")))
            if problem is None:
                # From here on it is what comes back, whoever dies.
                await asyncio.to_thread(self._memory.keep, after.generation, after.alpha)
                target = after
        finally:
            # Whatever went wrong: gates that stay closed would be worse.
            try:
                await self._settle(target)
            finally:
                self._changing = None
        return problem

    async def _settle(self, target: Target) -> None:
        """Let requests in again; who does not hold the target's weights is replaced."""
        if target.alpha == self._target.alpha:
            self._drop([n for n, m in self._members.items() if m.report.error is not None])
        await self._order(replace(target, phase="steady"))

    async def _order(self, target: Target) -> dict[str, Report]:
        """Publish a target and wait for all reports; replicas that fall silent are replaced."""
        # Before anything is waited for: nobody else can take this number.
        sequence = self._target.sequence + 1
        self._target = replace(target, sequence=sequence)
        async with self._moved:
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
                self._dropped.add(name)
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


def find_or_start_board(app_name: str, alpha: AlphaSetting, *, version: str = "") -> Any:
    """Return the board of a Serve application.

    Args:
        app_name: The application.
        alpha: Current alpha where the service has never been brought to another.
        version: Of what the application serves: one that is deployed anew with another model or
            alpha starts there, and not where clients had brought its predecessor.
    """
    # Detached: it outlives the replica that happens to come first.
    return (
        ray.remote(AlphaBoard)
        .options(
            name=board_name(app_name, version),
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
        )
        .remote(alpha, app_name, version)
    )


def stop_board(app_name: str, *, version: str = "") -> None:
    """End the board of a Serve application, if it has one, and forget its alpha."""
    name = board_name(app_name, version)
    with suppress(ValueError):
        ray.kill(ray.get_actor(name, namespace=NAMESPACE))
    AlphaMemory(name).forget()
