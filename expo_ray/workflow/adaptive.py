"""An alpha for each part of the model, tried on live replicas after a uniform one is confirmed.

Tables are named by the digest of the rules they were made under, so a killed search continues: it
is repeated from the start, and what stands costs nothing again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from expo_ray.checkpoints import atomic_write_json, atomic_write_text
from expo_ray.extrapolation.planning.alpha import ALIGNED_ALPHA
from expo_ray.extrapolation.planning.alpha_rules import AlphaRules
from expo_ray.extrapolation.planning.plan import build_plan
from expo_ray.rewards.sample_statistics import ranked_by
from expo_ray.selection.adaptive import (
    AdaptiveSettings,
    Trial,
    best_trial,
    compare_with_uniform,
    make_rules,
    module_globs,
    search_rules,
    uniform_values,
)
from expo_ray.selection.guards import check_guards
from expo_ray.selection.measured_tables import measure_tables
from expo_ray.selection.samples import join_tables
from expo_ray.serving.alpha_setting import AlphaSetting
from expo_ray.tables import read_table
from expo_ray.workflow import stages
from expo_ray.workflow.live_replicas import LiveReplicas
from expo_ray.workflow.live_tables import LiveTables

_STAYS = "the uniform alpha gained most on the tuning prompts"


def search_parts(run: stages.Run, selection: dict[str, Any]) -> dict[str, Any]:
    """Search an alpha for each part, where the recipe asks for it and a uniform one is confirmed.

    The uniform choice stays as it is. Rules that are better on held-out prompts are written to
    `alpha_rules.yaml`.

    Returns:
        The selection with what was found under `adaptive`, as `selection.json` now has it.
    """
    settings = run.recipe.adaptive
    if settings is None:
        return selection
    if selection["verdict"] != "extrapolate":
        run.progress.message("no search for an alpha by part: the aligned model is kept")
        return selection
    replicas = LiveReplicas(run, purpose="adaptive ")
    found = _Search(run, LiveTables(run, replicas), selection).run(settings)
    selection = {**selection, "adaptive": found}
    if found["is_better"]:
        write_rules(run.directory.alpha_rules_file, found)
    else:
        run.directory.alpha_rules_file.unlink(missing_ok=True)
    atomic_write_json(run.directory.selection_file, selection)
    return selection


class _Search:
    """Measures rules as candidates in the place of the uniform alpha."""

    def __init__(self, run: stages.Run, tables: LiveTables, selection: Mapping[str, Any]) -> None:
        self._run = run
        self._tables = tables
        self._uniform = float(selection["best_alpha"])
        # What the choice of the uniform alpha called a gain, its reward model's spread included.
        self._settings = run.selection.model_copy(
            update={"min_gain": selection["settings"]["min_gain"]}
        )
        self._prompts = {
            split: sorted(prompt for prompt, its in run.splits.items() if its == split)
            for split in ("tuning", "heldout")
        }
        tensors = build_plan(run.initial, run.aligned).pair.tensors
        self._globs = module_globs(pair.name for pair in tensors if pair.num_extrapolated)
        self._start = make_rules(uniform_values(self._uniform, self._globs), self._globs)
        self._num_trials = 0

    def run(self, settings: AdaptiveSettings) -> dict[str, Any]:
        """Return the entry of selection.json."""
        trials = search_rules(
            self._measure, self._uniform, self._globs, settings=settings, seed=self._run.recipe.seed
        )
        best = best_trial(trials) or trials[0]
        rules = self._setting(self._rules(best))
        heldout = self._compare(rules) if isinstance(rules, AlphaRules) else None
        return {
            "uniform_alpha": self._uniform,
            "num_trials": len(trials),
            "is_better": heldout is not None and heldout["is_better"],
            "reason": _STAYS if heldout is None else heldout["reason"],
            "best": {
                "alphas": dict(best.values),
                "rules": self._rules(best).as_dict(),
                "weights_digest": self._weights_digest(rules),
                "tuning_gain": best.gain,
            },
            "heldout": heldout,
            "trials": [
                {**trial.as_dict(), "rules_digest": self._rules(trial).digest} for trial in trials
            ],
            "cost": self._cost(trials),
        }

    def _rules(self, trial: Trial) -> AlphaRules:
        return make_rules(trial.values, self._globs)

    def _setting(self, rules: AlphaRules) -> AlphaSetting:
        """Return the rules, or the uniform alpha, whose tables stand, where they say the same."""
        return self._uniform if rules == self._start else rules

    def _measure(self, rules: AlphaRules) -> tuple[float | None, tuple[str, ...]]:
        self._num_trials += 1
        self._run.progress.message(f"alpha by part: trial {self._num_trials}")
        setting, tuning = self._setting(rules), self._prompts["tuning"]
        self._tables.fill([setting], tuning)
        responses, rewards = self._tables.read(
            {ALIGNED_ALPHA: ALIGNED_ALPHA, self._uniform: setting}
        )
        scoring, *guards = rewards
        found = measure_tables(
            responses,
            rewards[scoring],
            alphas=(ALIGNED_ALPHA, self._uniform),
            prompts=tuning,
            settings=self._settings,
            guard_rewards={label: rewards[label] for label in guards},
            signs_file=self._run.directory.signs_file,
        )
        gains = found.rewards[self._uniform] - found.rewards[ALIGNED_ALPHA]
        gains = gains[np.isfinite(gains)]
        return float(gains.mean()) if gains.size else None, found.stopped[self._uniform]

    def _compare(self, rules: AlphaRules) -> dict[str, Any]:
        """Ask the held-out prompts; nobody has compared rules on them before."""
        num_heldout = len(self._prompts["heldout"])
        self._run.progress.message(f"alpha by part: confirming on {num_heldout} held-out prompts")
        self._tables.fill([rules], self._prompts["heldout"])
        responses, rewards = self._tables.read({ALIGNED_ALPHA: ALIGNED_ALPHA, self._uniform: rules})
        scoring, *guards = rewards
        signs_file = self._run.directory.signs_file
        samples = join_tables(
            responses,
            rewards[scoring],
            {label: rewards[label] for label in guards},
            signs_file=signs_file,
        )["heldout"]
        findings = check_guards(samples, self._uniform, split="heldout", settings=self._settings)
        # Here the uniform alpha stands in the place of the aligned model.
        responses, rewards = self._tables.read({ALIGNED_ALPHA: self._uniform, self._uniform: rules})
        scored = ranked_by(self._settings.sample_statistic, rewards[scoring], responses)
        paired = join_tables(responses, scored, {}, signs_file=signs_file)["heldout"]
        return compare_with_uniform(
            paired.differences(self._uniform),
            tuple(guard.name for guard in findings if guard.fired),
            self._settings,
        )

    def _weights_digest(self, setting: AlphaSetting) -> str:
        table = read_table(self._run.directory.responses(setting))
        return str(table["weights_digest"][0].as_py())

    def _cost(self, trials: list[Trial]) -> dict[str, int]:
        tried = {rules.digest: rules for rules in map(self._rules, trials) if rules != self._start}
        tables = [read_table(self._run.directory.responses(rules)) for rules in tried.values()]
        return {
            "num_responses": sum(table.num_rows for table in tables),
            "completion_tokens": sum(
                sum(table["completion_tokens"].to_pylist()) for table in tables
            ),
        }


def write_rules(path: Path, found: Mapping[str, Any]) -> None:
    """Write the best rules as `--alpha-rules` reads them.

    Args:
        path: YAML file.
        found: What a search found and compared: the entry of selection.json.
    """
    heldout = found["heldout"]
    header = (
        f"# An alpha for each part, found in {found['num_trials']} trials from the uniform alpha "
        f"{found['uniform_alpha']:g}:\n"
        f"# {heldout['gain']:+.4g} reward over it on {heldout['num_pairs']} held-out prompts "
        f"({heldout['ci_low']:+.4g} to {heldout['ci_high']:+.4g}).\n"
    )
    rules = {"rules": found["best"]["rules"]["rules"]}
    atomic_write_text(path, header + yaml.safe_dump(rules, sort_keys=False))
