"""A replica's side of a change of alpha: it does what the board orders, and says what it holds."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError

from expo_ray.errors import ExpoError, ServingError
from expo_ray.serving.alpha_orders import Report, Target
from expo_ray.serving.alpha_setting import AlphaSetting
from expo_ray.serving.loaded import Loaded
from expo_ray.serving.weights_gate import WeightsGate

_BEAT_SECONDS = 1.0
_RETRY_SECONDS = 0.5


class AlphaMember:
    """Keeps one replica at the current alpha.

    Args:
        find_board: Returns the service's `AlphaBoard`, another one where the last has ended.
        name: Of the replica.
        actor: Handle of the replica, by which the board can end it.
        gate: Closed while the weights are replaced.
        load: Puts the weights of an alpha in place; called while nobody is inside.
    """

    def __init__(
        self,
        find_board: Callable[[], Any],
        *,
        name: str,
        actor: Any,
        gate: WeightsGate,
        load: Callable[[AlphaSetting], Awaitable[Loaded]],
    ) -> None:
        self._find_board = find_board
        self.board = find_board()
        self._name = name
        self._actor = actor
        self._gate = gate
        self._load = load
        self.is_changing = False
        """Whether the board leads a change, in which this replica may be without weights."""
        self._report: Report
        self._following: asyncio.Task[None]

    async def join(self) -> Loaded:
        """Load the current alpha, and follow the board from then on."""
        while True:
            target: Target = await self._ask("join")
            loaded = await self._load(target.alpha)
            if loaded.error is not None:
                return loaded
            self._report = _report(target, loaded.weights_digest, None)
            if await self._ask("enter", self._name, self._report, self._actor):
                self._following = asyncio.create_task(self._follow())
                return loaded

    async def _follow(self) -> None:
        while True:
            target = await self._ask("follow", self._name, self._report, self._actor)
            if target is None:
                # The board has ended this replica, which must not answer again.
                ray.kill(self._actor)
                return
            self.is_changing = target.phase == "prepare"
            if target.sequence != self._report.sequence:
                await self._obey(target)

    async def _obey(self, target: Target) -> None:
        beating = asyncio.create_task(self._beat())
        work = asyncio.create_task(self._reach(target))
        # Whatever goes wrong is reported: an exception here would leave the board waiting.
        await asyncio.wait([work])
        beating.cancel()
        problem = work.exception()
        if problem is None:
            self._report = work.result()
        else:
            error = ServingError("the weights could not be replaced", where=self._name, got=problem)
            self._report = _report(target, None, error)
        if self._report.error is None and target.phase == "steady":
            self._gate.open()

    async def _reach(self, target: Target) -> Report:
        held = self._report
        is_held = held.weights_digest is not None and held.alpha == target.alpha
        if is_held and target.phase == "steady":
            return _report(target, held.weights_digest, None)
        try:
            await self._gate.close(timeout_seconds=target.drain_seconds or None)
        except TimeoutError:
            return Report(
                sequence=target.sequence,
                generation=held.generation,
                alpha=held.alpha,
                weights_digest=held.weights_digest,
                error=ServingError(
                    "requests did not finish in time",
                    got=f"{self._gate.num_inside} after {target.drain_seconds:g} s",
                    hint="try again, or allow more time",
                ),
                has_drained=False,
            )
        loaded = await self._load(target.alpha)
        return _report(target, loaded.weights_digest, loaded.error)

    async def _beat(self) -> None:
        while True:
            await self._ask("beat", self._name)
            await asyncio.sleep(_BEAT_SECONDS)

    async def _ask(self, method: str, *args: object) -> Any:
        while True:
            try:
                return await getattr(self.board, method).remote(*args)
            except RayActorError:
                # It is being restarted; or it has ended, and another takes its place.
                await asyncio.sleep(_RETRY_SECONDS)
                with suppress(RayError, ValueError):  # its name is neither free nor taken yet
                    self.board = self._find_board()


def _report(target: Target, digest: str | None, error: ExpoError | None) -> Report:
    return Report(
        sequence=target.sequence,
        generation=target.generation,
        alpha=target.alpha,
        weights_digest=None if error is not None else digest,
        error=error,
    )
