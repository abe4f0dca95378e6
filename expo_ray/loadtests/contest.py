"""Two models, such as two alphas, under the same load by turns."""

from __future__ import annotations

import secrets
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expo_ray.checkpoints import atomic_write_json
from expo_ray.checkpoints.storages.local_output import require_writable_folder
from expo_ray.cluster import ray_session
from expo_ray.errors import ConfigError
from expo_ray.loadtests.measuring import SCHEMA_VERSION, Measured, check_outcome, measure
from expo_ray.loadtests.options import LoadtestOptions
from expo_ray.loadtests.paired import compare_requests
from expo_ray.loadtests.plan import LoadPlan, make_plan
from expo_ray.loadtests.stream import Endpoint
from expo_ray.loadtests.target import is_url, open_target
from expo_ray.progress import NullProgress, Progress
from expo_ray.serving.alpha_setting import RulesLike


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """One side of a comparison, as `loadtest` takes it."""

    target: str
    initial: str | None = None
    alpha: float | None = None
    alpha_rules: RulesLike | None = None
    extra_tensors: Sequence[str] = ()


def compare_targets(
    baseline: Contender,
    candidate: Contender,
    *,
    prompts: str | Path,
    output: str | Path,
    concurrency: Sequence[int] = (),
    rate: Sequence[float] = (),
    rounds: int = 3,
    together: bool = True,
    num_requests: int = 100,
    max_tokens: int = 256,
    options: LoadtestOptions | None = None,
    address: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Offer the same requests to two services by turns, and compare them pair by pair.

    Rounds alternate (baseline, candidate, candidate, baseline, ...), so that a machine that slows
    down meanwhile slows both.

    Args:
        baseline: The reference, such as the aligned model.
        candidate: The other, such as an extrapolated one.
        prompts: Prompts file.
        output: Folder for comparison.json and, per side and round, the files of a load test.
        concurrency: Closed-loop points.
        rate: Open-loop points.
        rounds: How often each side is measured.
        together: Keep both models served all the time; otherwise each is served for its turns
            alone, which takes half the hardware and longer.
        num_requests: Measured requests per point and round.
        max_tokens: Longest answer.
        options: As for `loadtest`.
        address: Ray cluster.
        progress: Where to report.

    Returns:
        The content of comparison.json: per load the ratios of `compare_requests`.

    Raises:
        RequestError: Loads, prompts or targets do not make sense; nothing was written.
        EvaluationError: A service failed more requests than allowed.
        ServingError: A service does not answer.
    """
    if rounds < 1:
        raise ConfigError("too few rounds", where="rounds", got=rounds, expected="1 or more")
    plan = make_plan(
        prompts=prompts,
        concurrency=concurrency,
        rate=rate,
        trace=None,
        find=None,
        num_requests=num_requests,
        max_tokens=max_tokens,
        options=options,
    )
    sides = {"baseline": baseline, "candidate": candidate}
    output = require_writable_folder(output)
    with ray_session(address), _Turns(sides, plan, together, progress or NullProgress()) as turns:
        for number in range(rounds):
            for name in list(sides) if number % 2 == 0 else list(sides)[::-1]:
                measured = turns.take(name)
                folder = output / name / f"round-{number}"
                measured.write(folder)
                check_outcome(measured.summary, plan.options, folder)
    comparison = {
        "schema_version": SCHEMA_VERSION,
        **{name: _identity(side, turns.taken[name][0]) for name, side in sides.items()},
        "rounds": rounds,
        "void": any(m.summary["void"] for found in turns.taken.values() for m in found),
        "points": [_compare(turns.taken, index, plan) for index in range(len(plan.loads))],
    }
    atomic_write_json(output / "comparison.json", comparison)
    return comparison


class _Turns:
    """Serves the sides, both at once or one by one, and lets each take its turn."""

    def __init__(
        self, sides: dict[str, Contender], plan: LoadPlan, together: bool, progress: Progress
    ) -> None:
        self._sides = sides
        self._plan = plan
        self._together = together
        self._progress = progress
        self._salt = secrets.token_hex(8)
        self._stack = ExitStack()
        self._open: dict[str, Endpoint] = {}
        self._seen: defaultdict[str, set[bytes]] = defaultdict(set)
        self.taken: dict[str, list[Measured]] = {name: [] for name in sides}

    def __enter__(self) -> _Turns:
        with ExitStack() as stack:
            if self._together:
                self._open = {name: self._serve(name, stack) for name in self._sides}
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def take(self, name: str) -> Measured:
        with ExitStack() as stack:
            endpoint = self._open.get(name) or self._serve(name, stack)
            side, found = self._sides[name], self.taken[name]
            # Replicas that start for each turn have no cache of the one before.
            lives_on = self._together or is_url(side.target)
            measured = measure(
                endpoint,
                self._plan,
                target=side.target,
                progress=self._progress,
                # The same letters on both sides, others in every round.
                salt=f"{self._plan.options.prompt_salt or self._salt}-{len(found)}",
                seen=self._seen[endpoint.url] if lives_on else None,
            )
        found.append(measured)
        return measured

    def _serve(self, name: str, stack: ExitStack) -> Endpoint:
        side = self._sides[name]
        target = open_target(
            side.target,
            initial=side.initial,
            alpha=side.alpha,
            alpha_rules=side.alpha_rules,
            extra_tensors=side.extra_tensors,
            options=self._plan.options,
        )
        return stack.enter_context(target)


def _identity(side: Contender, measured: Measured) -> dict[str, Any]:
    names = ("target", "model", "alpha", "alpha_rules", "weights_digest")
    return {name: measured.summary[name] for name in names} | {"initial": side.initial}


def _compare(taken: dict[str, list[Measured]], index: int, plan: LoadPlan) -> dict[str, Any]:
    rows = {
        name: [
            {**row, "round": number}
            for number, measured in enumerate(found)
            for row in measured.rows
            if row["point"] == index
        ]
        for name, found in taken.items()
    }
    load = plan.loads[index]
    compared = compare_requests(
        rows["baseline"],
        rows["candidate"],
        is_closed=load.concurrency is not None,
        seed=plan.options.seed,
    )
    return {"concurrency": load.concurrency, "offered_rate": load.offered_rate, **compared}
