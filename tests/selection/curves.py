"""Simulated rewards along alpha, and the callback of a search that reads them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from expo_ray.selection.bootstrap import FloatArray
from expo_ray.selection.candidates import measure_candidates
from expo_ray.selection.choice import in_sequence, pick
from expo_ray.selection.samples import SplitSamples
from expo_ray.selection.search import Measured
from expo_ray.selection.settings import SelectionSettings

GRID = (0.1, 0.2, 0.3, 0.4, 0.5)

SHAPES: Mapping[str, Callable[[FloatArray], FloatArray]] = {
    "flat": lambda u: 0 * u,
    "rising": lambda u: u,
    "peak": lambda u: 4 * u * (1.2 - u) / 1.44,
    "early peak": lambda u: 1 - ((u - 0.4) / 0.4) ** 2,
    "cliff": lambda u: np.where(u < 0.7, u, 0.7 - 8 * (u - 0.7)),
    "falling": lambda u: -u,
}
"""Mean gain by position on the grid, in units of the largest gain."""


class SimulatedRewards:
    """Rewards of all alphas on all prompts, made on demand and counted.

    A candidate's differences to alpha 0 wander like a random walk in alpha, heavy-tailed, so that
    neighbours resemble each other as responses under common random numbers do.
    """

    def __init__(
        self,
        gain: Callable[[float], float],
        *,
        alphas: Sequence[float],
        num_prompts: int,
        noise: float,
        seed: int,
    ) -> None:
        self.prompts = tuple(f"p{i:04d}" for i in range(num_prompts))
        self.calls: list[tuple[tuple[float, ...], int]] = []
        rng = np.random.default_rng(seed)
        aligned = rng.normal(0, 3, num_prompts)
        walk = np.zeros(num_prompts)
        self.rewards: dict[float, FloatArray] = {0.0: aligned}
        scale = max(abs(a) for a in alphas)
        for direction in (1, -1):
            walk, before = np.zeros(num_prompts), 0.0
            for alpha in sorted((a for a in alphas if a * direction > 0), key=abs):
                step = noise * np.sqrt((abs(alpha) - before) / scale)
                walk = walk + step * rng.standard_t(5, num_prompts) / np.sqrt(5 / 3)
                before = abs(alpha)
                self.rewards[alpha] = aligned + gain(alpha) + walk

    def __call__(self, alphas: Sequence[float], prompts: Sequence[str]) -> Measured:
        assert tuple(prompts) == self.prompts[: len(prompts)]
        self.calls.append((tuple(alphas), len(prompts)))
        return Measured(rewards={a: self.rewards[a][: len(prompts)] for a in alphas})


class AnyAlpha:
    """Rewards of whatever alpha is asked for: for searches that propose their own."""

    def __init__(
        self, gain: Callable[[float], float], *, num_prompts: int, noise: float, seed: int
    ) -> None:
        self.prompts = tuple(f"p{i:04d}" for i in range(num_prompts))
        self._gain, self._noise, self._seed = gain, noise, seed

    def __call__(self, alphas: Sequence[float], prompts: Sequence[str]) -> Measured:
        return Measured(rewards={a: self._rewards(a)[: len(prompts)] for a in alphas})

    def _rewards(self, alpha: float) -> FloatArray:
        rng = np.random.default_rng(self._seed)
        aligned, directions = rng.normal(0, 3, (2, len(self.prompts)))
        own = np.random.default_rng([self._seed, round(1e4 * abs(alpha))])
        noise = 0.5 * directions / 3 + own.normal(0, 1, len(self.prompts))
        reach = min(1.0, np.sqrt(abs(alpha)))
        return aligned + self._gain(alpha) + self._noise * reach * noise


def choose(
    rewards: Mapping[float, FloatArray], settings: SelectionSettings, dropped: Mapping[float, str]
) -> float | None:
    """What goes to the held-out prompts; a dropped candidate has rewards for the first ones."""
    return next(iter(choose_in_order(rewards, settings, dropped)), None)


def choose_in_order(
    rewards: Mapping[float, FloatArray],
    settings: SelectionSettings,
    dropped: Mapping[float, str],
    *,
    first: float | None = None,
) -> list[float]:
    """What goes to the held-out prompts, one after the other; `first` stays first, if given."""
    alphas = tuple(sorted(rewards))
    num_prompts = rewards[0.0].size
    table = np.full((len(alphas), num_prompts), np.nan)
    for row, alpha in enumerate(alphas):
        table[row, : rewards[alpha].size] = rewards[alpha]
    plain = np.where(np.isfinite(table), 0.0, np.nan)
    samples = SplitSamples(
        alphas=alphas,
        prompt_of_key=np.arange(num_prompts),
        num_prompts=num_prompts,
        rewards=table,
        guard_rewards={},
        peers=(),
        tokens=plain + 20,
        thought_tokens=plain,
        truncated=plain,
        repetition=plain,
        echoes=plain,
        markers=plain,
        drifts=plain,
        present=np.isfinite(table),
    )
    candidates, _ = measure_candidates(samples, settings, dropped)
    if first is None:
        found = pick(candidates, samples, settings)
    else:
        found = next(c for c in candidates if c.alpha == first)
    return [] if found is None else in_sequence(candidates, found)
