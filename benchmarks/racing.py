"""Shows that racing makes the choice of the full grid for at most half of its generations.

    python -m benchmarks.racing --seeds 1000-1019         simulated reward curves
    python -m benchmarks.racing --run runs/quickstart     a finished run, replayed from its tables
    python -m benchmarks.racing --recall --seeds 0-999    on to held-out prompts and a gate

A run is replayed once per seed, each time with another half of its prompts for tuning and in
another order; nothing is generated or scored again. The defaults of racing were chosen by looking
at simulated seeds below 200 alone. The full grid is the strategy `grid`: every candidate
answers every prompt, held-out ones too, of which there are as many. Two shares are printed, because
a race saves twice: it drops candidates on tuning prompts, and but two of all answer the held-out
prompts. With `--recall` a gate stops some on held-out prompts: what a race dropped is recalled as
in a run, and false claims are counted beside those of the full grid (`recalled_races.py`).

Needs: two CPU cores; --run a finished run. Takes: 2 minutes; --recall a second for four cases.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.recalled_races import SCENARIOS, Run, describe
from benchmarks.replayed_race import ReplayedRace, share_of_all
from expo_ray.selection import SelectionSettings
from expo_ray.selection.search import SearchResult, search_alphas
from expo_ray.tables import assign_splits, read_table
from expo_ray.tables.seeds import shuffled
from tests.selection.curves import GRID, SHAPES, SimulatedRewards, choose

RACING = SelectionSettings(strategy="racing", num_resamples=1000)


@dataclass(frozen=True, kw_only=True)
class Case:
    """One race beside its full grid."""

    raced: float | None
    full: float | None
    search: SearchResult

    @property
    def tuning_share(self) -> float:
        return self.search.share

    @property
    def share(self) -> float:
        """Of all generations, with as many held-out as tuning prompts."""
        return share_of_all(self.search, int(self.raced is not None), self.search.num_tuning)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="1000-1019", help="FIRST-LAST")
    parser.add_argument("--run", type=Path, action="append", help="finished run directory")
    parser.add_argument("--prompts", type=int, default=400, help="simulated tuning prompts")
    parser.add_argument("--recall", action="store_true", help="with a gate, to the end")
    parser.add_argument("--scenario", type=int, action="append", help="of --recall, from 1")
    arguments = parser.parse_args()
    first, last = map(int, arguments.seeds.split("-"))
    seeds = range(first, last + 1)
    if arguments.run:
        for path in arguments.run:
            show(str(path), [replay(path, seed) for seed in seeds])
        return
    if arguments.recall:
        for number in arguments.scenario or range(1, len(SCENARIOS) + 1):
            scenario = SCENARIOS[number - 1]
            runs = (Run(scenario, num_prompts=arguments.prompts, seed=seed) for seed in seeds)
            print(describe(scenario, [(run.race(), run.full()) for run in runs]), flush=True)
        return
    every: list[Case] = []
    for shape in SHAPES:
        cases = list(simulate(shape, seeds, arguments.prompts))
        show(shape, cases)
        every += cases
    show("all", every)


def show(name: str, cases: list[Case]) -> None:
    same = np.mean([case.raced == case.full for case in cases])
    tuning = np.mean([case.tuning_share for case in cases])
    share = np.mean([case.share for case in cases])
    print(
        f"{name}: {len(cases)} races, same choice {same:.1%}, {share:.1%} of all generations of "
        f"the full grid, {tuning:.1%} of those on tuning prompts",
        flush=True,
    )


def simulate(shape: str, seeds: range, num_prompts: int) -> Iterator[Case]:
    for seed in seeds:
        for effect in (0.1, 0.2, 0.4, 0.8):
            rewards = SimulatedRewards(
                lambda a, effect=effect: float(effect * SHAPES[shape](np.float64(a / GRID[-1]))),
                alphas=GRID,
                num_prompts=num_prompts,
                noise=1.5,
                seed=seed,
            )
            found = search_alphas(rewards, rewards.prompts, alphas=GRID, settings=RACING)
            seen = {a: rewards.rewards[a][:n] for a, n in found.num_answered.items()}
            yield Case(
                raced=choose(seen, RACING, found.dropped),
                full=choose(rewards.rewards, RACING, {}),
                search=found,
            )


def replay(path: Path, seed: int) -> Case:
    """Race on the tables of a finished run, guards and all."""
    responses = concatenated(path / "responses")
    scoring, *guards = sorted(f for f in (path / "rewards").iterdir() if f.name[0].isdigit())
    rewards = concatenated(scoring)
    guard_rewards = {folder.name: concatenated(folder) for folder in guards}
    ids = sorted(set(responses["prompt_id"].to_pylist()))
    splits = assign_splits(ids, heldout_fraction=0.5, seed=seed)
    tuning = shuffled([i for i in ids if splits[i] == "tuning"], seed=seed, purpose="race")
    alphas = sorted(set(responses["alpha"].to_pylist()))
    race = ReplayedRace(
        responses=resplit(responses, splits),
        rewards=rewards,
        guard_rewards=guard_rewards,
        tuning=tuning,
        settings=RACING,
    )
    found = race.search(alphas)
    full = race.choose(dict.fromkeys(alphas, len(tuning)))
    raced = race.choose(found.num_answered, search=found)
    return Case(raced=raced["tried_alpha"], full=full["tried_alpha"], search=found)


def concatenated(folder: Path) -> pa.Table:
    return pa.concat_tables(read_table(file) for file in sorted(folder.glob("alpha-*.parquet")))


def resplit(table: pa.Table, splits: dict[str, str]) -> pa.Table:
    column = pa.array([splits[i] for i in table["prompt_id"].to_pylist()], pa.string())
    return table.set_column(table.column_names.index("split"), "split", column)


if __name__ == "__main__":
    main()
