"""Measuring every candidate on the tuning prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from expo_ray.selection.bootstrap import Estimate, FloatArray, adjust_p_values, bootstrap_mean
from expo_ray.selection.guard_findings import Guard
from expo_ray.selection.guards import (
    COLLAPSE_GUARDS,
    check_guards,
    length_controlled_gain,
    length_ratio,
)
from expo_ray.selection.samples import SplitSamples
from expo_ray.selection.settings import SelectionSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One alpha as measured on tuning prompts; None where there was nothing to measure."""

    alpha: float
    num_pairs: int
    """Prompts scored both under this alpha and under alpha 0."""
    num_errors: int
    """Rewards that are null or missing."""
    mean_reward: float | None
    ci_low: float | None
    ci_high: float | None
    gain: float | None
    """Mean over prompts of the reward minus that of alpha 0."""
    gain_ci_low: float | None
    gain_ci_high: float | None
    mean_tokens: float | None
    """Of answers; thoughts are no part of them."""
    length_ratio: float | None
    truncation_rate: float | None
    """Share of the responses that the limit on tokens cut off, or that are a thought alone."""
    collapsed: bool
    """A guard against broken text fired: no ends, repetition, lost answers."""
    length_controlled_gain: float | None
    """Gain left at equal length: the intercept of a regression of reward on length differences."""
    p_value: float | None
    """Two-sided, of no gain; None for alpha 0."""
    p_adjusted: float | None
    """The same, adjusted for the number of candidates."""
    eligible: bool
    """Significant gain and no guard fired."""
    stopped_by: tuple[str, ...]
    """Names of the guards that fired."""
    dropped: str | None
    """Why the search dropped it before it had answered all prompts; None where it did not."""
    mean_thought_tokens: float | None
    """Tokens of what was thought before an answer; None where the tables do not tell."""
    samples: tuple[dict[str, object], ...] = ()
    """What several samples of a prompt say under each check: see `sample_results`."""
    reported: tuple[dict[str, object], ...] = ()
    """The gain under each reward model that is only reported."""

    def as_dict(self) -> dict[str, object]:
        """Return the entry of selection.json."""
        lists = {name: list(getattr(self, name)) for name in ("stopped_by", "samples", "reported")}
        return {**asdict(self), **lists}


def estimate_mean(values: FloatArray, settings: SelectionSettings) -> Estimate:
    """Bootstrap the mean of one value per prompt as the settings say."""
    return bootstrap_mean(values, num_resamples=settings.num_resamples, seed=settings.seed)


def is_gain(estimate: Estimate, p_value: float, settings: SelectionSettings) -> bool:
    """Return whether a difference lies significantly above `min_gain`."""
    return (
        estimate.num_values >= settings.min_pairs
        and estimate.mean is not None
        and estimate.mean > settings.min_gain
        and p_value <= 1 - settings.confidence
    )


def caution(candidate: Candidate) -> tuple[float, bool]:
    """Sort key: the shorter way from aligned first, forward before backward."""
    return abs(candidate.alpha), candidate.alpha < 0


def highest_gain(candidates: Sequence[Candidate]) -> Candidate | None:
    """Return the candidate with the highest mean gain, among equals the most cautious one."""
    measured = sorted((c for c in candidates if c.gain is not None), key=caution)
    return max(measured, key=lambda c: c.gain or 0.0, default=None)


def measure_candidates(
    samples: SplitSamples, settings: SelectionSettings, dropped: Mapping[float, str]
) -> tuple[list[Candidate], list[Guard]]:
    """Measure all candidates, ascending by alpha, and run the guards on them.

    Args:
        samples: The tuning prompts.
        settings: The rules.
        dropped: Candidates that a search dropped, with the reason: they are measured on what they
            answered, and cannot be chosen.
    """
    others = [alpha for alpha in samples.alphas if alpha != 0]
    of = {a: samples.answered_by(a) if a in dropped else samples for a in samples.alphas}
    gains = {alpha: estimate_mean(of[alpha].differences(alpha), settings) for alpha in others}
    # When a candidate was dropped depended on its rewards: its p-value would mean nothing.
    p_values = {
        alpha: 1.0 if alpha in dropped else gains[alpha].p_value(settings.min_gain)
        for alpha in others
    }
    # Candidates that a guard stops stay in the count: they were looked at all the same.
    adjusted = dict(
        zip(others, adjust_p_values(list(p_values.values()), settings.correction), strict=True)
    )
    guards = {
        alpha: check_guards(of[alpha], alpha, split="tuning", settings=settings) for alpha in others
    }
    candidates = []
    for alpha in samples.alphas:
        stopped_by = tuple(guard.name for guard in guards.get(alpha, []) if guard.fired)
        gain = gains.get(alpha)
        gained = gain is not None and is_gain(gain, adjusted[alpha], settings)
        candidates.append(
            _candidate(
                of[alpha],
                alpha,
                gain=gain,
                p_value=p_values.get(alpha),
                p_adjusted=adjusted.get(alpha),
                stopped_by=stopped_by,
                eligible=gained and not stopped_by and alpha not in dropped,
                dropped=dropped.get(alpha),
                settings=settings,
            )
        )
    return candidates, [guard for alpha in others for guard in guards[alpha]]


def _candidate(
    samples: SplitSamples,
    alpha: float,
    *,
    gain: Estimate | None,
    p_value: float | None,
    p_adjusted: float | None,
    stopped_by: tuple[str, ...],
    eligible: bool,
    dropped: str | None,
    settings: SelectionSettings,
) -> Candidate:
    row = samples.row(alpha)
    reward = estimate_mean(samples.by_prompt(samples.rewards[row]), settings)
    ci_low, ci_high = reward.interval(settings.confidence)
    # Alpha 0 differs from itself by exactly nothing.
    gain_ci = (0.0, 0.0) if gain is None else gain.interval(settings.confidence)
    return Candidate(
        alpha=alpha,
        num_pairs=reward.num_values if gain is None else gain.num_values,
        num_errors=samples.num_errors(alpha),
        mean_reward=reward.mean,
        ci_low=ci_low,
        ci_high=ci_high,
        gain=0.0 if gain is None else gain.mean,
        gain_ci_low=gain_ci[0],
        gain_ci_high=gain_ci[1],
        mean_tokens=_mean(samples.tokens[row]),
        length_ratio=length_ratio(samples, alpha),
        truncation_rate=_mean(samples.truncated[row]),
        collapsed=not COLLAPSE_GUARDS.isdisjoint(stopped_by),
        length_controlled_gain=length_controlled_gain(samples, alpha),
        p_value=p_value,
        p_adjusted=p_adjusted,
        eligible=eligible,
        stopped_by=stopped_by,
        dropped=dropped,
        mean_thought_tokens=_mean(samples.thought_tokens[row]),
        reported=tuple(_reported(samples, alpha, settings)) if gain is not None else (),
    )


def _reported(
    samples: SplitSamples, alpha: float, settings: SelectionSettings
) -> Iterator[dict[str, object]]:
    """Yield the gain under each reward model that is only reported."""
    for model in sorted(samples.guard_rewards.keys() & set(settings.report_only)):
        estimate = estimate_mean(samples.differences(alpha, judge=model), settings)
        low, high = estimate.interval(settings.confidence)
        yield {
            "reward_model": model,
            "gain": estimate.mean,
            "ci_low": low,
            "ci_high": high,
            "num_prompts": estimate.num_values,
        }


def _mean(values: FloatArray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None
