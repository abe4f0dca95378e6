"""An alpha for each part of the model, searched by Optuna through Ray Tune from the uniform one.

One alpha for all weights is the paper's method; whether attention, MLP, embeddings and norms, or
early and late layers, want different ones is an empirical question. The answer here is honest by
construction: the search sees tuning prompts only, and what it found is compared with the uniform
alpha on held-out prompts, where "no better" is an expected outcome.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, Field

from expo_ray.extrapolation.pairing.modules import layer_index, module_group
from expo_ray.extrapolation.planning.alpha_rules import AlphaRule, AlphaRules, Ramp
from expo_ray.extras import require_extra
from expo_ray.selection.bootstrap import FloatArray
from expo_ray.selection.candidates import estimate_mean
from expo_ray.selection.settings import SelectionSettings

_RAMPED = ("attention", "mlp")
_REST = "embeddings"
_NUM_RANDOM_TRIALS = 6
_LAYER_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


class AdaptiveSettings(BaseModel):
    """How far to search for an alpha by part of the model; part of a recipe."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", allow_inf_nan=False)

    num_trials: int = Field(
        default=24,
        ge=2,
        description="Settings tried, the uniform alpha among them; each answers all tuning "
        "prompts.",
    )

    reach: float = Field(
        default=2.0,
        gt=1,
        description="Every part's alpha lies between 0 and so many times the uniform one.",
    )


class MeasureRules(Protocol):
    """Answers the tuning prompts under rules and scores the answers."""

    def __call__(self, rules: AlphaRules) -> tuple[float | None, tuple[str, ...]]:
        """Return the mean gain over alpha 0, and the guards that stopped the rules."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One setting and what it gave."""

    values: Mapping[str, float]
    """Alpha by part."""
    gain: float | None
    """Mean over tuning prompts, paired with alpha 0; None where nothing could be scored."""
    stopped: tuple[str, ...]
    """Guards that fired."""

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of selection.json."""
        return {"alphas": dict(self.values), "gain": self.gain, "stopped_by": list(self.stopped)}


def module_globs(names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """Return globs over tensor names for each part of a model that gets an alpha of its own.

    Attention and MLP weights inside of layers are parts with a ramp over depth, norms one part,
    embeddings, head and all others another.

    Args:
        names: Of the tensors that are extrapolated.
    """
    found: dict[str, set[str]] = {}
    for name in names:
        group = module_group(name)
        if group != "norms" and (group not in _RAMPED or layer_index(name) is None):
            group = _REST
        found.setdefault(group, set()).add(_LAYER_NUMBER.sub("*", name))
    return {group: tuple(sorted(found[group])) for group in sorted(found)}


def make_rules(values: Mapping[str, float], globs: Mapping[str, tuple[str, ...]]) -> AlphaRules:
    """Return the rules that give each part its alpha.

    Patterns with more dots and fewer stars come first: `*` also passes dots, and what matches one
    of them may match a wider one too.

    Args:
        values: Alpha by `part`, or `part.first` and `part.last` for parts with a ramp.
        globs: What `module_globs` returned.
    """
    rules = []
    for group, patterns in globs.items():
        alpha: float | Ramp
        if group in _RAMPED:
            alpha = Ramp(first=values[f"{group}.first"], last=values[f"{group}.last"])
        else:
            alpha = values[group]
        rules += [AlphaRule(match=pattern, alpha=alpha) for pattern in patterns]
    return AlphaRules(rules=tuple(sorted(rules, key=_from_narrow_to_wide)))


def _from_narrow_to_wide(rule: AlphaRule) -> tuple[int, int, str]:
    return -rule.match.count("."), rule.match.count("*"), rule.match


def uniform_values(uniform: float, globs: Mapping[str, tuple[str, ...]]) -> dict[str, float]:
    """Return the values of `make_rules` that give every part the same alpha."""
    keys = [
        key
        for group in globs
        for key in ((f"{group}.first", f"{group}.last") if group in _RAMPED else (group,))
    ]
    return dict.fromkeys(keys, uniform)


def search_rules(
    measure: MeasureRules,
    uniform: float,
    globs: Mapping[str, tuple[str, ...]],
    *,
    settings: AdaptiveSettings,
    seed: int,
) -> list[Trial]:
    """Try rules one after the other, the uniform alpha first; the replicas hold one at a time.

    The same seed and measurements repeat the same search, so that a killed one continues from
    what its tables hold.

    Args:
        measure: Answers and scores.
        uniform: The best alpha for the whole model.
        globs: Parts of the model.
        settings: Trials and reach.
        seed: Of Optuna's sampler.

    Raises:
        MissingExtraError: Optuna is not installed.
    """
    start = uniform_values(uniform, globs)
    searcher = _searcher(start, settings, seed)
    trials = []
    for number in range(settings.num_trials):
        suggested = searcher.suggest(str(number))
        # Short decimals: what is tried is what the rules file says.
        values = {key: float(f"{suggested[key]:.4g}") for key in start} if number else start
        gain, stopped = measure(make_rules(values, globs))
        trials.append(Trial(values=values, gain=gain, stopped=stopped))
        if gain is None or stopped:
            searcher.on_trial_complete(str(number), error=True)
        else:
            searcher.on_trial_complete(str(number), {"gain": gain})
    return trials


def _searcher(start: Mapping[str, float], settings: AdaptiveSettings, seed: int) -> Any:
    require_extra("adaptive", where="adaptive")
    import optuna
    from ray import tune
    from ray.tune.search.optuna import OptunaSearch

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    logging.getLogger("ray.tune").setLevel(logging.ERROR)
    low, high = sorted((0.0, settings.reach * next(iter(start.values()))))
    return OptunaSearch(
        OptunaSearch.convert_search_space({key: tune.uniform(low, high) for key in start}),
        metric="gain",
        mode="max",
        points_to_evaluate=[dict(start)],
        sampler=optuna.samplers.TPESampler(
            seed=seed, multivariate=True, n_startup_trials=_NUM_RANDOM_TRIALS
        ),
    )


def best_trial(trials: list[Trial]) -> Trial | None:
    """Return the trial with the highest gain that no guard stopped; None where there is none."""
    allowed = [trial for trial in trials if trial.gain is not None and not trial.stopped]
    return max(allowed, key=lambda trial: trial.gain or 0.0, default=None)


def compare_with_uniform(
    differences: FloatArray, stopped: tuple[str, ...], settings: SelectionSettings
) -> dict[str, Any]:
    """Say whether the rules beat the uniform alpha on held-out prompts.

    Args:
        differences: Reward under the rules less reward under the uniform alpha, per held-out
            prompt scored under both.
        stopped: Guards that fired on the held-out prompts.
        settings: Confidence, resamples and the least number of pairs.

    Returns:
        `gain`, `ci_low`, `ci_high`, `p_value`, `num_pairs`, `stopped_by`, `is_better`, `reason`.
    """
    estimate = estimate_mean(differences, settings)
    low, high = estimate.interval(settings.confidence)
    p_value = estimate.p_value()
    if stopped:
        reason = f"stopped by {', '.join(stopped)}"
    elif estimate.num_values < settings.min_pairs:
        reason = f"only {estimate.num_values} held-out prompts are scored under both"
    elif low is None or estimate.mean is None or low <= settings.min_gain:
        reason = "no gain over the uniform alpha that held-out prompts confirm"
    else:
        reason = "more reward than the uniform alpha on held-out prompts"
    return {
        "gain": estimate.mean,
        "ci_low": low,
        "ci_high": high,
        "p_value": p_value,
        "num_pairs": estimate.num_values,
        "stopped_by": list(stopped),
        "is_better": reason.startswith("more"),
        "reason": reason,
    }
