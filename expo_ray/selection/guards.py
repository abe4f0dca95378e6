"""Guards: what a candidate must not do, however high its reward.

They stand against reward hacking: a score that rises while the answers get longer, or worse.
Each guard compares one number with one threshold on one split and says in words what it saw. A
guard that cannot be measured stops the candidate: not knowing is no permission.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import numpy as np

from expo_ray.extrapolation.planning.alpha import ALIGNED_ALPHA
from expo_ray.selection.bootstrap import bootstrap_mean
from expo_ray.selection.samples import FloatArray, SplitSamples
from expo_ray.selection.settings import SelectionSettings

COLLAPSE_GUARDS = frozenset(
    {
        *("truncation-rate", "repetition", "short-responses"),
        *("prompt-echo", "special-tokens", "language-drift"),
    }
)
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
    guards = [
        case.null_rewards(None),
        *case.lengths(),
        case.truncation(),
        case.repetition(),
        *case.signs(),
        *case.length_controlled(),
    ]
    for judge in sorted(samples.guard_rewards):
        guards += [case.null_rewards(judge), case.agreement(judge)]
    return guards


def length_ratio(samples: SplitSamples, alpha: float) -> float | None:
    """Return the mean response length over that of alpha 0, on prompts that both answered."""
    tokens, aligned = (samples.tokens[samples.row(a)] for a in (alpha, ALIGNED_ALPHA))
    both = np.isfinite(tokens) & np.isfinite(aligned)
    total = float(aligned[both].sum())
    return float(tokens[both].sum()) / total if total else None


def length_controlled_gain(samples: SplitSamples, alpha: float) -> float | None:
    """Return the gain left at equal length; None where lengths do not differ or are unknown.

    It is the intercept of a regression of reward differences on length differences.
    """
    row, aligned = samples.row(alpha), samples.row(ALIGNED_ALPHA)
    if row == aligned:
        return 0.0
    rewards = samples.rewards[row] - samples.rewards[aligned]
    longer = samples.tokens[row] - samples.tokens[aligned]
    both = np.isfinite(rewards) & np.isfinite(longer)
    if np.unique(longer[both]).size < 2:
        return None
    _, intercept = np.polyfit(longer[both], rewards[both], 1)
    return float(intercept)


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

    def signs(self) -> Iterator[Guard]:
        """Signs of broken text, relative to alpha 0; they need the chats."""
        settings = self.settings
        for name, values, increase, what in (
            ("prompt-echo", self.samples.echoes, settings.max_echo_increase, "restate the prompt"),
            (
                "special-tokens",
                self.samples.markers,
                settings.max_special_token_increase,
                "write out markers of a chat template",
            ),
            (
                "language-drift",
                self.samples.drifts,
                settings.max_language_drift_increase,
                "are in another language than the prompt",
            ),
        ):
            if increase is None or np.isnan(values).all():
                continue
            value, aligned = self._means(values)
            words = f"{_percent(value)} of the responses {what}"
            words += f" ({_percent(aligned)} for the aligned model)"
            yield self._guard(name, value, aligned + increase, words=words)

    def length_controlled(self) -> Iterator[Guard]:
        """What remains of the gain at equal length; asked of longer candidates only."""
        threshold = self.settings.min_length_controlled_gain
        ratio = length_ratio(self.samples, self.alpha)
        value = length_controlled_gain(self.samples, self.alpha)
        if threshold is None or value is None or ratio is None or ratio <= 1:
            return
        words = f"at equal length a gain of {value:+.4g} remains (regression on token counts)"
        yield self._guard(
            "length-controlled-gain", value, threshold, words=words, fired=value <= threshold
        )

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
            _mean(values[self.samples.row(ALIGNED_ALPHA)]) or 0.0,
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
