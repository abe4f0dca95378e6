"""Guards: what a candidate must not do, however high its reward.

Each guard compares one number with one threshold on one split and says in words what it saw. A
guard that cannot be measured stops the candidate: not knowing is no permission.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np

from expo_ray.selection.bootstrap import bootstrap_mean
from expo_ray.selection.samples import FloatArray, SplitSamples
from expo_ray.selection.settings import SelectionSettings

COLLAPSE_GUARDS = frozenset({"truncation-rate", "repetition", "short-responses"})
"""Guards that fire on text which is broken, not merely longer or less liked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Guard:
    """One guard's finding on one candidate."""

    name: str
    alpha: float
    split: str
    value: float | None
    threshold: float
    fired: bool
    reason: str

    def as_dict(self) -> dict[str, object]:
        """Return the entry of selection.json."""
        return asdict(self)


def check_guards(
    samples: SplitSamples, alpha: float, *, split: str, settings: SelectionSettings
) -> list[Guard]:
    """Run every guard on one candidate.

    Args:
        samples: The samples of the split.
        alpha: A candidate other than 0.
        split: Its name, for the record.
        settings: Thresholds.
    """
    case = _Case(samples=samples, alpha=alpha, split=split, settings=settings)
    guards = [case.null_rewards(None), *case.lengths(), case.truncation(), case.repetition()]
    for judge in sorted(samples.guard_rewards):
        guards += [case.null_rewards(judge), case.agreement(judge)]
    return guards


def length_ratio(samples: SplitSamples, alpha: float) -> float | None:
    """Return the mean response length over that of alpha 0, on prompts that both answered."""
    tokens, aligned = (samples.tokens[samples.row(a)] for a in (alpha, 0.0))
    both = np.isfinite(tokens) & np.isfinite(aligned)
    total = float(aligned[both].sum())
    return float(tokens[both].sum()) / total if total else None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Case:
    samples: SplitSamples
    alpha: float
    split: str
    settings: SelectionSettings

    def null_rewards(self, judge: str | None) -> Guard:
        num_keys = self.samples.prompt_of_key.size
        value = self.samples.num_errors(self.alpha, judge) / num_keys if num_keys else None
        name = "null-rewards" if judge is None else f"null-rewards of {judge}"
        limit = self.settings.max_error_rate
        return self._guard(
            name, value, limit, words=f"{_percent(value)} of the rewards are null or missing"
        )

    def lengths(self) -> list[Guard]:
        value = length_ratio(self.samples, self.alpha)
        words = f"responses are {value or 0:.2f} times as long as those of the aligned model"
        longest, shortest = self.settings.max_length_ratio, self.settings.min_length_ratio
        guards = []
        if longest is not None:
            guards.append(self._guard("length-ratio", value, longest, words=words))
        if shortest is not None:
            fired = value is None or value < shortest
            guards.append(self._guard("short-responses", value, shortest, words=words, fired=fired))
        return guards

    def truncation(self) -> Guard:
        value, aligned = self._means(self.samples.truncated)
        limit = min(
            aligned + self.settings.max_truncation_increase,
            max(aligned, self.settings.max_truncation_rate),
        )
        words = f"{_percent(value)} of the responses run into the token limit"
        words += f" ({_percent(aligned)} for the aligned model)"
        return self._guard("truncation-rate", value, limit, words=words)

    def repetition(self) -> Guard:
        value, aligned = self._means(self.samples.repetition)
        limit = aligned + self.settings.max_repetition_increase
        words = f"{_percent(value)} of the four-word sequences repeat"
        words += f" ({_percent(aligned)} for the aligned model)"
        return self._guard("repetition", value, limit, words=words)

    def agreement(self, judge: str) -> Guard:
        estimate = bootstrap_mean(
            self.samples.differences(self.alpha, judge=judge),
            num_resamples=self.settings.num_resamples,
            seed=self.settings.seed,
        )
        value, what = estimate.mean, "gain"
        if self.settings.guard_agreement == "significant":
            value, what = estimate.interval(self.settings.confidence)[0], "lower limit of the gain"
        words = f"{what} under the reward model {judge} is {value or 0:+.4g}"
        fired = value is None or value <= 0
        return self._guard(f"reward-model {judge}", value, 0.0, words=words, fired=fired)

    def _means(self, values: FloatArray) -> tuple[float | None, float]:
        """Mean of the candidate and of alpha 0."""
        return (
            _mean(values[self.samples.row(self.alpha)]),
            _mean(values[self.samples.row(0.0)]) or 0.0,
        )

    def _guard(
        self,
        name: str,
        value: float | None,
        threshold: float,
        *,
        words: str,
        fired: bool | None = None,
    ) -> Guard:
        """Make the record; without `fired` the threshold is an upper limit."""
        if fired is None:
            fired = value is None or value > threshold
        verdict = "stopped" if fired else "fine"
        reason = f"{words}; threshold {threshold:.4g}: {verdict}"
        return Guard(
            name=name,
            alpha=self.alpha,
            split=self.split,
            value=value,
            threshold=threshold,
            fired=fired,
            reason=reason if value is not None else f"{name} could not be measured: stopped",
        )


def _mean(values: FloatArray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if finite.size else None


def _percent(value: float | None) -> str:
    return f"{value or 0:.1%}"
