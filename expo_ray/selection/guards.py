"""Guards: what a candidate must not do, however high its reward.

They stand against reward hacking: a score that rises while the answers get longer, or worse.
Each guard compares candidate and aligned model on the same prompts of one split, and has three
answers (`guard_findings`): a handful of answers more or fewer is no finding. A guard that cannot be
measured stops the candidate: not knowing is no permission.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy import stats

from expo_ray.extrapolation.planning.alpha import ALIGNED_ALPHA
from expo_ray.selection.bootstrap import bootstrap_mean
from expo_ray.selection.guard_comparisons import (
    Comparison,
    compare_intercept,
    compare_mean,
    compare_ratio,
    compare_shares,
)
from expo_ray.selection.guard_findings import Guard, Question, judge, percent
from expo_ray.selection.guard_settings import Doubt
from expo_ray.selection.samples import FloatArray, SplitSamples
from expo_ray.selection.settings import SelectionSettings

COLLAPSE_GUARDS = frozenset(
    {
        *("truncation-rate", "repetition", "short-responses"),
        *("prompt-echo", "special-tokens", "language-drift"),
    }
)
"""Guards that fire on text which is broken, not merely longer or less liked."""


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
    for judge_name in sorted(samples.guard_rewards.keys() - set(settings.report_only)):
        guards.append(case.null_rewards(judge_name))
        # An equal model gains nothing in half of all cases: a gate asks for less than a guard.
        if judge_name not in settings.no_worse_than:
            guards.append(case.agreement(judge_name))
    return guards


def length_ratio(samples: SplitSamples, alpha: float) -> float | None:
    """Return the mean response length over that of alpha 0, on prompts that both answered."""
    tokens, aligned = (samples.tokens[samples.row(a)] for a in (alpha, ALIGNED_ALPHA))
    both = np.isfinite(tokens) & np.isfinite(aligned)
    total = float(aligned[both].sum())
    return float(tokens[both].sum()) / total if total else None


def length_controlled_gain(samples: SplitSamples, alpha: float) -> float | None:
    """Return the gain left at equal length; None where lengths do not differ or are unknown.

    It is the intercept of a regression of reward differences on length differences, prompt by
    prompt.
    """
    if alpha == ALIGNED_ALPHA:
        return 0.0
    rewards, longer = _length_regression(samples, alpha)
    if np.unique(longer).size < 2:
        return None
    return compare_intercept(rewards, longer, 0.0, 0.95).value


def _length_regression(samples: SplitSamples, alpha: float) -> tuple[FloatArray, FloatArray]:
    """Return per prompt the difference of the rewards and that of the lengths."""
    row, aligned = samples.row(alpha), samples.row(ALIGNED_ALPHA)
    rewards = samples.rewards[row] - samples.rewards[aligned]
    longer = samples.tokens[row] - samples.tokens[aligned]
    both = np.isfinite(rewards) & np.isfinite(longer)
    of_prompts = [samples.by_prompt(np.where(both, v, np.nan)) for v in (rewards, longer)]
    return of_prompts[0], of_prompts[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Case:
    samples: SplitSamples
    alpha: float
    split: str
    settings: SelectionSettings

    def null_rewards(self, model: str | None) -> Guard:
        num_keys = self.samples.prompt_of_key.size
        num_errors = self.samples.num_errors(self.alpha, model)
        limit = self.settings.max_error_rate
        found = None
        if num_keys:
            # A look of a race saw a part of the prompts only: it asks for the probability.
            exact = stats.binomtest(num_errors, num_keys, limit, alternative="greater")
            found = Comparison(
                value=num_errors / num_keys,
                ci_low=None,
                ci_high=None,
                p_value=min(1.0, 2 * float(exact.pvalue)),
                num_prompts=self.samples.num_prompts,
            )
        words = f"{percent(num_errors / max(num_keys, 1))} of the rewards are null or missing"
        name = "null-rewards" if model is None else f"null-rewards of {model}"
        return self._judge(
            Question(name=name, limit=limit, doubt="by-value", is_count=True, is_share=True),
            found,
            words,
        )

    def lengths(self) -> Iterator[Guard]:
        tokens, aligned = self._of_both(self.samples.tokens)
        known = tokens.size > 0 and aligned.sum() > 0
        confidence = self.settings.confidence
        ratio = float(tokens.sum() / aligned.sum()) if known else 0.0
        words = f"responses are {ratio:.2f} times as long as those of the aligned model"
        for name, limit, at_most in (
            ("length-ratio", self.settings.max_length_ratio, True),
            ("short-responses", self.settings.min_length_ratio, False),
        ):
            if limit is None:
                continue
            found = compare_ratio(tokens, aligned, limit, confidence) if known else None
            question = Question(
                name=name,
                limit=limit,
                doubt=self.settings.guard_doubt,
                at_most=at_most,
            )
            yield self._judge(question, found, words)

    def truncation(self) -> Guard:
        settings = self.settings
        what = "run into the token limit"
        if _mean(self._of_both(self.samples.truncated)[1]) > settings.max_truncation_rate:
            what += ": the aligned model's too, so a larger max_tokens is needed"
        return self._share(
            "truncation-rate",
            self.samples.truncated,
            settings.max_truncation_increase,
            what,
            ceiling=settings.max_truncation_rate,
        )

    def repetition(self) -> Guard:
        values, aligned = self._of_both(self.samples.repetition)
        limit, before = self.settings.max_repetition_increase, _mean(aligned)
        found = None
        if values.size:
            found = compare_mean(values - aligned, limit, self.settings.confidence)
        words = f"{percent(_mean(values))} of the four-word sequences repeat"
        words += f" ({percent(before)} for the aligned model)"
        question = Question(
            name="repetition",
            limit=limit,
            offset=before,
            doubt=self.settings.guard_doubt,
            is_share=True,
        )
        return self._judge(question, found, words)

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
            yield self._share(name, values, increase, what)

    def length_controlled(self) -> Iterator[Guard]:
        """What remains of the gain at equal length; asked of longer candidates only."""
        threshold = self.settings.min_length_controlled_gain
        ratio = length_ratio(self.samples, self.alpha)
        if threshold is None or ratio is None or ratio <= 1:
            return
        rewards, longer = _length_regression(self.samples, self.alpha)
        if np.unique(longer).size < 2:
            return
        found = compare_intercept(rewards, longer, threshold, self.settings.confidence)
        words = f"at equal length a gain of {found.value:+.4g} remains (regression on token counts)"
        question = Question(
            name="length-controlled-gain", limit=threshold, doubt=self._burden(), at_most=False
        )
        yield self._judge(question, found, words)

    def agreement(self, model: str) -> Guard:
        estimate = bootstrap_mean(
            self.samples.differences(self.alpha, judge=model),
            num_resamples=self.settings.num_resamples,
            seed=self.settings.seed,
        )
        found = None
        if estimate.mean is not None:
            low, high = estimate.interval(self.settings.confidence)
            found = Comparison(
                value=estimate.mean,
                ci_low=low,
                ci_high=high,
                p_value=estimate.p_value(),
                num_prompts=estimate.num_values,
            )
        words = f"gain under the reward model {model} is {estimate.mean or 0:+.4g}"
        is_strict = self.settings.guard_agreement == "significant"
        question = Question(
            name=f"reward-model {model}",
            limit=0.0,
            doubt="stop" if is_strict else "by-value",
            at_most=False,
        )
        return self._judge(question, found, words)

    def _burden(self) -> Doubt:
        """A gain has to be shown: doubt counts against it where its value does."""
        return "stop" if self.settings.guard_doubt == "stop" else "by-value"

    def _share(
        self,
        name: str,
        values: FloatArray,
        increase: float,
        what: str,
        *,
        ceiling: float = 1.0,
    ) -> Guard:
        """Compare how many responses of both do something.

        Args:
            name: Of the guard.
            values: 1 where a response does, else 0.
            increase: How far above that of the aligned model the share may lie.
            what: What they do.
            ceiling: Where the share may lie at most, unless that of the aligned model does.
        """
        candidate, aligned = self._of_both(values)
        before = _mean(aligned)
        limit = min(increase, max(0.0, ceiling - before))
        found = None
        if candidate.size:
            found = compare_shares(candidate - aligned, limit, self.settings.confidence)
        words = f"{percent(_mean(candidate))} of the responses {what}"
        words += f" ({percent(before)} for the aligned model)"
        question = Question(
            name=name,
            limit=limit,
            offset=before,
            doubt=self.settings.guard_doubt,
            is_share=True,
        )
        return self._judge(question, found, words)

    def _of_both(self, values: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return the values of candidate and alpha 0 by prompt, where both have one."""
        candidate, aligned = (values[self.samples.row(a)] for a in (self.alpha, ALIGNED_ALPHA))
        both = np.isfinite(candidate) & np.isfinite(aligned)
        pair = [self.samples.by_prompt(np.where(both, v, np.nan)) for v in (candidate, aligned)]
        return pair[0], pair[1]

    def _judge(self, question: Question, found: Comparison | None, words: str) -> Guard:
        return judge(
            question,
            found,
            words,
            alpha=self.alpha,
            split=self.split,
            confidence=self.settings.confidence,
        )


def _mean(values: FloatArray) -> float:
    return float(values.mean()) if values.size else 0.0
