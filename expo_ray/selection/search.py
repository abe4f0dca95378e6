"""Which alphas to try, and on how many prompts: the strategies behind `--strategy`.

    grid         the given alphas, all prompts
    expanding    the grid; while the best lies on its edge, a fresh round of candidates beyond it
    bracketing   doubles alpha until the reward falls, then halves the bracket in log alpha: for
                 lightly trained models, whose useful alpha reaches 25
    racing       any of these, candidates dropped on the way that can hardly be chosen any more

The search asks for rewards through a callback and knows neither models nor Ray. It decides what
is measured; `choose_alpha` decides on what was measured, corrected for all candidates ever tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from expo_ray.errors import ConfigError
from expo_ray.extrapolation.planning.alpha import ALIGNED_ALPHA
from expo_ray.selection import proposals
from expo_ray.selection.bootstrap import FloatArray
from expo_ray.selection.proposals import Tried
from expo_ray.selection.race import expendable, look_sizes
from expo_ray.selection.settings import SelectionSettings
from expo_ray.selection.table_keys import canonical_alpha


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """What the callback found."""

    rewards: Mapping[float, FloatArray]
    """Per alpha one reward for each of the prompts asked for, not-a-number where it failed."""
    stopped: Mapping[float, tuple[str, ...]] = field(default_factory=dict)
    """Guards that fire on these prompts, by alpha."""
    suspected: Mapping[float, tuple[str, ...]] = field(default_factory=dict)
    """Guards whose values lie beyond their thresholds, with confidence or without."""
    certain: Mapping[float, tuple[str, ...]] = field(default_factory=dict)
    """Guards that do so beyond doubt, however often one looks: a race may drop by these alone."""


class Measure(Protocol):
    """Answers prompts by candidates and scores the answers; repeated requests cost nothing."""

    def __call__(self, alphas: Sequence[float], prompts: Sequence[str]) -> Measured:
        """Return the rewards of these alphas on these prompts.

        Args:
            alphas: Candidates, alpha 0 among them.
            prompts: Ids of tuning prompts; later calls extend earlier ones.
        """
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Look:
    """One step of the search: what was measured and who was dropped after it."""

    round: int
    alphas: tuple[float, ...]
    num_prompts: int
    dropped: tuple[float, ...]
    why: Mapping[float, str]

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of selection.json."""
        return {
            "round": self.round,
            "alphas": list(self.alphas),
            "num_prompts": self.num_prompts,
            "dropped": [{"alpha": a, "why": self.why[a]} for a in self.dropped],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchResult:
    """What was tried, in which order, at what cost."""

    strategy: str
    num_tuning: int
    num_answered: Mapping[float, int]
    """Prompts answered, by alpha; alpha 0 among them."""
    dropped: Mapping[float, str]
    """Why, by alpha."""
    looks: tuple[Look, ...]
    spared: frozenset[float] = frozenset()
    """Dropped because others were ahead, and by no guard: see `recall`."""
    recalled: tuple[float, ...] = ()
    """Dropped once, and asked to the end after all, in their order."""
    first: float | None = None
    """What went to the held-out prompts first, where any were recalled."""

    @property
    def alphas(self) -> tuple[float, ...]:
        """All that were ever tried, ascending, alpha 0 among them."""
        return tuple(sorted(self.num_answered))

    @property
    def share(self) -> float:
        """Answers to tuning prompts, relative to all candidates answering all of them."""
        full = self.num_tuning * len(self.num_answered)
        return sum(self.num_answered.values()) / full if full else 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the part of selection.json; generations are answered prompts, per sample."""
        return {
            "strategy": self.strategy,
            "rounds": [look.as_dict() for look in self.looks],
            "prompts_answered": [
                {"alpha": alpha, "num_prompts": self.num_answered[alpha]} for alpha in self.alphas
            ],
            "tuning_answers": sum(self.num_answered.values()),
            "tuning_answers_full": self.num_tuning * len(self.num_answered),
            "recalled": list(self.recalled),
        }


def search_alphas(
    measure: Measure,
    prompts: Sequence[str],
    *,
    alphas: Sequence[float],
    settings: SelectionSettings,
) -> SearchResult:
    """Try candidates as the strategy says.

    Args:
        measure: Answers and scores.
        prompts: Ids of the tuning prompts, in random order: the first ones stand for all.
        alphas: The grid; bracketing starts from the largest one.
        settings: Strategy and rules.

    Raises:
        ConfigError: Bracketing has no positive alpha to start from.
    """
    search = _Search(measure, prompts, settings)
    grid = tuple(sorted({canonical_alpha(alpha) for alpha in alphas} - {ALIGNED_ALPHA}))
    for fresh in _rounds(search, grid, settings):
        search.run_round(fresh)
    return search.result()


def _rounds(
    search: _Search, grid: tuple[float, ...], settings: SelectionSettings
) -> Iterator[tuple[float, ...]]:
    """Yield the candidates of each round, proposed from what the rounds before have shown."""
    bracketing = "bracketing" in settings.strategy
    first = grid[-1:] if bracketing else grid
    if bracketing and first[0] < 0:
        raise ConfigError(
            "bracketing starts from a positive alpha",
            where="selection.strategy",
            got=f"alpha {first[0]:g}",
            hint="min_alpha says how far backwards it may go",
        )
    yield first
    if not bracketing and "expanding" not in settings.strategy:
        return
    propose = proposals.bracketing if bracketing else proposals.expanding
    while True:
        room = settings.max_candidates - (len(search.num_answered) - 1)
        proposed = [canonical_alpha(a) for a in propose(search.tried(), first, settings)]
        fresh = tuple(dict.fromkeys(a for a in proposed if a not in search.num_answered))[:room]
        if not fresh:
            return
        yield fresh


class _Search:
    def __init__(
        self, measure: Measure, prompts: Sequence[str], settings: SelectionSettings
    ) -> None:
        self.num_answered: dict[float, int] = {ALIGNED_ALPHA: 0}
        self._measure = measure
        self._prompts = tuple(prompts)
        self._settings = settings
        self._rewards: dict[float, FloatArray] = {ALIGNED_ALPHA: np.empty(0)}
        self._stopped: dict[float, tuple[str, ...]] = {}
        self._suspected: dict[float, tuple[str, ...]] = {}
        self._certain: dict[float, tuple[str, ...]] = {}
        self._dropped: dict[float, str] = {}
        self._spared: set[float] = set()
        self._looks: list[Look] = []
        self._num_rounds = 0
        self._error_left = 0.0

    def result(self) -> SearchResult:
        return SearchResult(
            strategy=self._settings.strategy,
            num_tuning=len(self._prompts),
            num_answered=dict(self.num_answered),
            dropped=dict(self._dropped),
            looks=tuple(self._looks),
            spared=frozenset(self._spared),
        )

    def tried(self) -> list[Tried]:
        """What is known of every candidate, alpha 0 among them, ascending."""
        return [
            Tried(
                alpha=alpha,
                differences=self._differences(alpha, rewards.size),
                stopped=bool(self._stopped.get(alpha)),
            )
            for alpha, rewards in sorted(self._rewards.items())
        ]

    def run_round(self, fresh: Sequence[float]) -> None:
        """Measure candidates on all prompts; when racing, drop some on the way."""
        self._num_rounds += 1
        racing = "racing" in self._settings.strategy
        sizes = look_sizes(len(self._prompts)) if racing else [len(self._prompts)]
        left = list(fresh)
        self._error_left = self._settings.race_error / self._num_rounds
        for size in sizes:
            self._look(left, size)
            measured = tuple(left)
            why: dict[float, str] = {}
            if size < len(self._prompts):
                why = self._drop(left, size)
                left = [a for a in left if a not in why]
            self._dropped.update(why)
            self._looks.append(
                Look(
                    round=self._num_rounds,
                    alphas=measured,
                    num_prompts=size,
                    dropped=tuple(why),
                    why=why,
                )
            )
            if not left:
                return

    def _look(self, alphas: Sequence[float], size: int) -> None:
        measured = self._measure((ALIGNED_ALPHA, *alphas), self._prompts[:size])
        for alpha in (ALIGNED_ALPHA, *alphas):
            if size > self.num_answered.get(alpha, 0):
                self._rewards[alpha] = measured.rewards[alpha]
                self.num_answered[alpha] = size
        for known, found in (
            (self._stopped, measured.stopped),
            (self._suspected, measured.suspected),
            (self._certain, measured.certain),
        ):
            known.update((a, tuple(found.get(a, ()))) for a in alphas)

    def _drop(self, left: Sequence[float], size: int) -> dict[float, str]:
        """Return why some of these are dropped."""
        why = {
            a: f"{', '.join(self._certain[a])} on {size} prompts"
            for a in left
            if self._certain.get(a)
        }
        rivals = self._rivals(size)
        why |= self._expendable(rivals, [a for a in left if a in rivals], size)
        # A suspect does not lead: others are compared without it. It may be cleared, though, so
        # it goes where it would not be chosen either way.
        for suspect in (a for a in left if a not in rivals and a not in why):
            others = [a for a in rivals if a not in why]
            why |= self._expendable(sorted([*others, suspect], key=caution), [suspect], size)
        self._spared.update(a for a in why if not self._certain.get(a))
        return why

    def _expendable(
        self, rivals: Sequence[float], droppable: Sequence[float], size: int
    ) -> dict[float, str]:
        """Return why some need not answer on, as far as the error that is left allows it."""
        if not droppable:
            return {}
        table = np.vstack([self._differences(a, size) for a in rivals])
        table = table[:, np.isfinite(table).all(axis=0)]
        if table.shape[1] < 2:
            return {}
        positions, spent = expendable(
            table,
            num_final=len(self._prompts),
            allowed=[True] * len(rivals),
            droppable=[a in droppable for a in rivals],
            num_tested=len(self.num_answered) - 1,
            budget=self._error_left / 2,
            settings=self._settings,
        )
        self._error_left -= spent
        return {
            rivals[i]: f"after {size} prompts further answers would hardly change the "
            f"choice (gain so far {np.mean(table[i]):+.4g})"
            for i in positions
        }

    def _rivals(self, size: int) -> list[float]:
        """Candidates still in the race, and finished ones, most cautious first.

        Without those whom a guard suspects: were they to lead, others would be dropped for the
        sake of one that the guard may stop in the end.
        """
        standing = [
            a
            for a, rewards in self._rewards.items()
            if a != 0 and rewards.size >= size and a not in self._dropped
        ]
        return sorted(
            (a for a in standing if not (self._stopped.get(a) or self._suspected.get(a))),
            key=caution,
        )

    def _differences(self, alpha: float, size: int) -> FloatArray:
        n = min(size, self._rewards[alpha].size, self._rewards[ALIGNED_ALPHA].size)
        difference: FloatArray = self._rewards[alpha][:n] - self._rewards[ALIGNED_ALPHA][:n]
        return difference


def caution(alpha: float) -> tuple[float, bool]:
    """Sort key: the shorter way from aligned first, forward before backward."""
    return abs(alpha), alpha < 0
