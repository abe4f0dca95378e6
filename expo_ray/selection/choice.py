"""Choosing alpha: measure candidates on tuning prompts, confirm one on held-out prompts.

    eligible  = no guard fired, and the gain over alpha 0 is significant on tuning prompts
    chosen    = the smallest eligible alpha whose gain is not significantly below the best one's
    confirmed = no guard fires and the gain is significant on held-out prompts, which nobody
                looked at before

One alpha goes to the held-out prompts. Where it is not confirmed the answer is keep-aligned: a
second try there would make them tuning prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from expo_ray.errors import EvaluationError
from expo_ray.selection.candidates import Candidate, estimate_mean, is_gain, measure_candidates
from expo_ray.selection.guards import Guard, check_guards
from expo_ray.selection.samples import SplitSamples, join_tables
from expo_ray.selection.settings import SelectionSettings

SCHEMA_VERSION = 1


def choose_alpha(
    responses: pa.Table,
    rewards: pa.Table,
    *,
    settings: SelectionSettings | None = None,
    guard_rewards: Mapping[str, pa.Table] | None = None,
) -> dict[str, Any]:
    """Choose alpha from finished responses and rewards, or say that none holds up.

    Args:
        responses: Responses of all candidates, alpha 0 (the aligned model) among them.
        rewards: Their rewards under the scoring reward model.
        settings: The rules; the defaults where None.
        guard_rewards: Rewards of the same responses under further reward models, by name.

    Returns:
        The content of selection.json.

    Raises:
        TableError: The tables are malformed or do not belong together.
        EvaluationError: Too many rewards of the aligned model itself are null.
    """
    settings = settings or SelectionSettings()
    splits = join_tables(responses, rewards, guard_rewards or {})
    tuning, heldout = splits["tuning"], splits["heldout"]
    for split, samples in splits.items():
        _require_baseline(samples, split, settings)
    candidates, guards = measure_candidates(tuning, settings)
    tried = _pick(candidates, tuning, settings)
    # Without one to try, the held-out figures of the nearest candidate are shown, not judged.
    shown = tried.alpha if tried is not None else _nearest(candidates)
    confirmation, heldout_guards = _confirm(heldout, shown, settings)
    extrapolate = tried is not None and confirmation["confirmed"]
    return {
        "schema_version": SCHEMA_VERSION,
        "best_alpha": shown if extrapolate else 0.0,
        "verdict": "extrapolate" if extrapolate else "keep-aligned",
        "reason": (
            _reason_none(candidates, tuning.num_prompts, settings)
            if tried is None
            else _reason_tried(confirmation, heldout_guards, settings)
        ),
        "rejected_alpha": None if extrapolate or shown == 0 else shown,
        "num_tuning": tuning.num_prompts,
        "num_heldout": heldout.num_prompts,
        "candidates": [candidate.as_dict() for candidate in candidates],
        "guards": [guard.as_dict() for guard in (*guards, *heldout_guards)],
        "heldout": {**confirmation, "confirmed": extrapolate},
        "warnings": _warnings(candidates),
        "settings": settings.model_dump(),
    }


def _require_baseline(samples: SplitSamples, split: str, settings: SelectionSettings) -> None:
    num_keys = samples.prompt_of_key.size
    num_errors = samples.num_errors(0.0)
    if num_errors > settings.max_error_rate * num_keys:
        raise EvaluationError(
            f"too many rewards of the aligned model are null or missing on {split} prompts",
            where="alpha 0",
            got=f"{num_errors} of {num_keys}",
            expected=f"at most {settings.max_error_rate:.1%}",
            hint="the error column of the rewards says why; score these rows again",
        )


def _pick(
    candidates: Sequence[Candidate], tuning: SplitSamples, settings: SelectionSettings
) -> Candidate | None:
    """Return the candidate that goes to the held-out prompts."""
    eligible = sorted((c for c in candidates if c.eligible), key=_caution)
    if not eligible:
        return None
    best = max(eligible, key=_gain)  # the first, so the smallest alpha, among equals
    if settings.prefer == "best":
        return best
    for candidate in eligible:
        lead = estimate_mean(tuning.differences(best.alpha, candidate.alpha), settings)
        clearly_below = (
            lead.mean is not None and lead.mean > 0 and (lead.p_value() <= 1 - settings.confidence)
        )
        if not clearly_below:
            return candidate
    return best


def _caution(candidate: Candidate) -> tuple[float, bool]:
    """Sort key: the shorter way from aligned first, forward before backward."""
    return abs(candidate.alpha), candidate.alpha < 0


def _gain(candidate: Candidate) -> float:
    return -float("inf") if candidate.gain is None else candidate.gain


def _confirm(
    heldout: SplitSamples, alpha: float, settings: SelectionSettings
) -> tuple[dict[str, Any], list[Guard]]:
    estimate = estimate_mean(heldout.differences(alpha), settings)
    p_value = estimate.p_value(settings.min_gain)
    ci_low, ci_high = estimate.interval(settings.confidence)
    guards = check_guards(heldout, alpha, split="heldout", settings=settings) if alpha else []
    confirmed = is_gain(estimate, p_value, settings) and not any(g.fired for g in guards)
    return {
        "alpha": alpha,
        "gain": estimate.mean,
        "ci_low": ci_low,
        "ci_high": ci_high,
        "num_pairs": estimate.num_values,
        "p_value": p_value,
        "confirmed": confirmed,
    }, guards


def _nearest(candidates: Sequence[Candidate]) -> float:
    """Return the alpha that came nearest to being tried; 0 where there is no other."""
    others = sorted((c for c in candidates if c.alpha != 0), key=_caution)
    if not others:
        return 0.0
    return max(others, key=lambda c: (not c.stopped_by, _gain(c))).alpha


def _warnings(candidates: Sequence[Candidate]) -> list[str]:
    measured = [c for c in candidates if c.gain is not None]
    best = max(measured, key=_gain, default=None)
    if best is None or best.alpha == 0 or best.alpha != max(c.alpha for c in candidates):
        return []
    return [
        f"the reward is highest at the largest alpha tried ({best.alpha:g}): the best one may lie "
        "beyond, or the reward model may be rewarding something else than quality"
    ]


def _reason_tried(
    heldout: Mapping[str, Any],
    guards: Sequence[Guard],
    settings: SelectionSettings,
) -> str:
    where = f"on {heldout['num_pairs']} held-out prompts"
    fired = [guard.reason for guard in guards if guard.fired]
    if heldout["gain"] is None or heldout["num_pairs"] < settings.min_pairs:
        return (
            f"alpha {heldout['alpha']:g} gained on the tuning prompts, but {heldout['num_pairs']} "
            f"held-out prompts are too few to confirm it (at least {settings.min_pairs})"
        )
    measured = (
        f"by {heldout['gain']:+.4g} ({settings.confidence:.0%} interval {heldout['ci_low']:+.4g} "
        f"to {heldout['ci_high']:+.4g}, p = {heldout['p_value']:.2g}) {where}"
    )
    if heldout["confirmed"]:
        return f"alpha {heldout['alpha']:g} changes the mean reward {measured}"
    start = f"alpha {heldout['alpha']:g} gained on the tuning prompts, "
    if fired:
        return f"{start}but {where} a guard stopped it: {'; '.join(fired)}"
    return f"{start}but the gain is not confirmed: the mean reward changes {measured}"


def _reason_none(
    candidates: Sequence[Candidate], num_prompts: int, settings: SelectionSettings
) -> str:
    others = [c for c in candidates if c.alpha != 0]
    if not others:
        return "there is no candidate besides the aligned model"
    if num_prompts < settings.min_pairs:
        return f"{num_prompts} tuning prompts are too few (at least {settings.min_pairs})"
    parts = [f"alpha {c.alpha:g} {_why_not(c, settings)}" for c in others]
    return f"no candidate holds up on {num_prompts} tuning prompts: {'; '.join(parts)}"


def _why_not(candidate: Candidate, settings: SelectionSettings) -> str:
    if candidate.stopped_by:
        return f"was stopped by {', '.join(candidate.stopped_by)}"
    if candidate.gain is None or candidate.num_pairs < settings.min_pairs:
        return f"has only {candidate.num_pairs} prompts scored under both models"
    if candidate.gain <= settings.min_gain:
        return f"does not gain ({candidate.gain:+.4g})"
    chance = f"adjusted p = {candidate.p_adjusted:.2g}"
    return f"gains {candidate.gain:+.4g}, which may be chance ({chance})"
