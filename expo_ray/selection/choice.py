"""Choosing alpha: measure candidates on tuning prompts, confirm one on held-out prompts.

    eligible  = no guard fired, and the gain over alpha 0 is significant on tuning prompts
    chosen    = the smallest eligible alpha whose gain is not significantly below the best one's
    confirmed = no guard fires and the gain is significant on held-out prompts, which nobody
                looked at before

The best of several candidates looks better than it is on the prompts that chose it (the winner's
curse); its gain on the held-out prompts does not. That one goes there, and the next smaller
eligible one after it only where a guard stopped it although it gained (`heldout_sequence`): where
nothing is confirmed the answer is keep-aligned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from expo_ray.errors import EvaluationError
from expo_ray.extrapolation.planning.alpha import ALIGNED_ALPHA
from expo_ray.rewards.sample_statistics import ranked_by
from expo_ray.selection.bootstrap import Estimate
from expo_ray.selection.candidates import (
    Candidate,
    caution,
    estimate_mean,
    highest_gain,
    is_gain,
    measure_candidates,
)
from expo_ray.selection.explanations import (
    explain_none,
    explain_tried,
    warn_of_circle,
    warn_of_cut_off,
    warn_of_edge,
)
from expo_ray.selection.first_order import check_first_order
from expo_ray.selection.gates import (
    Gate,
    MeasureSets,
    Scores,
    check_gate,
    gate_confidence,
    main_scores,
)
from expo_ray.selection.guard_findings import Guard
from expo_ray.selection.guards import check_guards
from expo_ray.selection.heldout_sequence import Confirmation, confirm_in_sequence
from expo_ray.selection.recall import may_be_recalled
from expo_ray.selection.sample_results import samples_by_alpha
from expo_ray.selection.samples import SplitSamples, join_tables, reward_model
from expo_ray.selection.search import SearchResult
from expo_ray.selection.settings import SelectionSettings
from expo_ray.selection.unreadable_answers import unreadable_answers, warn_of_unreadable

SCHEMA_VERSION = 1


def choose_alpha(
    responses: pa.Table,
    rewards: pa.Table,
    *,
    settings: SelectionSettings | None = None,
    guard_rewards: Mapping[str, pa.Table] | None = None,
    measurement_spread: float | None = None,
    search: SearchResult | None = None,
    signs_file: Path | None = None,
    prompt_sets: MeasureSets | None = None,
) -> dict[str, Any]:
    """Choose alpha from finished responses and rewards, or say that none holds up.

    Args:
        responses: Responses of all candidates, alpha 0 (the aligned model) among them.
        rewards: Their rewards under the scoring reward model.
        settings: The rules; the defaults where None.
        guard_rewards: Rewards of the same responses under further reward models, by name.
        measurement_spread: How far batching alone moves a score of the scoring reward model, as
            its self-test found; gains up to this are not called gains.
        search: How the candidates were found; those it dropped cannot be chosen, and all that it
            tried count in the correction.
        signs_file: Where the signs of the texts stand from before, and are kept for the next
            choice; what in it does not belong to these texts is not used.
        prompt_sets: Measures a candidate on further sets of prompts, all of them held out. Asked
            of candidates alone whose gain is significant on the main held-out prompts, and whom
            nothing stops there: answers to further prompts cost.

    Returns:
        The content of selection.json.

    Raises:
        TableError: The tables are malformed or do not belong together.
        EvaluationError: Too many rewards of the aligned model itself are null.
    """
    settings = (settings or SelectionSettings()).above(measurement_spread)
    dropped = {} if search is None else search.dropped
    tables = {"": rewards, **(guard_rewards or {})}
    told = samples_by_alpha(tables, responses, settings)
    unreadable = unreadable_answers(tables)
    rewards = ranked_by(settings.sample_statistic, rewards, responses)
    splits = join_tables(
        responses,
        rewards,
        guard_rewards or {},
        signs_file=signs_file,
        report_only=settings.report_only,
    )
    tuning, heldout = splits["tuning"], splits["heldout"]
    for split, samples in splits.items():
        _require_baseline(samples, split, settings)
    candidates, guards = measure_candidates(tuning, settings, dropped)
    if search is not None and search.first is not None:
        tried = next((c for c in candidates if c.alpha == search.first), None)
    else:
        tried = pick(candidates, tuning, settings)
    # Without one to try, the held-out figures of the nearest candidate are shown, not judged.
    order = [_nearest(candidates)] if tried is None else in_sequence(candidates, tried)
    waiting = [] if search is None else may_be_recalled(search, order[0])
    sequence, heldout_guards, gates = _confirm(
        heldout,
        order,
        settings,
        prompt_sets,
        ask_gates=tried is not None,
        num_candidates=len(order) + len(waiting),
    )
    last = sequence[-1]
    shown = last.alpha
    extrapolate = tried is not None and last.outcome == "confirmed"
    return {
        "schema_version": SCHEMA_VERSION,
        "best_alpha": shown if extrapolate else ALIGNED_ALPHA,
        "verdict": "extrapolate" if extrapolate else "keep-aligned",
        "reason": (
            explain_none(candidates, tuning.num_prompts, settings)
            if tried is None
            else explain_tried(
                candidates,
                sequence,
                heldout_guards,
                settings,
                num_judges=1 + len(_peers(tuning, settings)),
            )
        ),
        "unfit": [],
        "tried_alpha": None if tried is None else shown,
        "rejected_alpha": None if extrapolate or shown == 0 else shown,
        "num_tuning": tuning.num_prompts,
        "num_heldout": heldout.num_prompts,
        "candidates": [
            replace(candidate, samples=tuple(told.get(candidate.alpha, ()))).as_dict()
            for candidate in candidates
        ],
        "guards": [guard.as_dict() for guard in (*guards, *heldout_guards)],
        "heldout": {**_record(last), "confirmed": extrapolate},
        "gates": [gate.as_dict() for gate in gates],
        "heldout_sequence": [] if tried is None else [one.as_dict() for one in sequence],
        "first_order": check_first_order(tuning, settings, dropped),
        "search": None if search is None else search.as_dict(),
        "measurement_spread": measurement_spread,
        "unreadable": unreadable,
        "warnings": [
            *warn_of_unreadable(unreadable),
            *_warn_of_circle(rewards, guard_rewards or {}, settings),
            *warn_of_cut_off(next(c for c in candidates if c.alpha == ALIGNED_ALPHA), settings),
            *warn_of_edge(candidates, tried if _peers(tuning, settings) else None),
        ],
        "settings": settings.model_dump(),
    }


def _warn_of_circle(
    rewards: pa.Table, guard_rewards: Mapping[str, pa.Table], settings: SelectionSettings
) -> list[str]:
    guards = (t for name, t in guard_rewards.items() if name not in settings.report_only)
    tables = (rewards, *guards)
    return warn_of_circle([reward_model(table) for table in tables if table.num_rows])


def _peers(tuning: SplitSamples, settings: SelectionSettings) -> tuple[str, ...]:
    """Return the guards that order the candidates together with the scoring reward model."""
    return tuning.peers if settings.rank_by == "all-judges" else ()


def _require_baseline(samples: SplitSamples, split: str, settings: SelectionSettings) -> None:
    num_keys = samples.prompt_of_key.size
    num_errors = samples.num_errors(ALIGNED_ALPHA)
    if num_errors > settings.max_error_rate * num_keys:
        raise EvaluationError(
            f"too many rewards of the aligned model are null or missing on {split} prompts",
            where="alpha 0",
            got=f"{num_errors} of {num_keys}",
            expected=f"at most {settings.max_error_rate:.1%}",
            hint="the error column of the rewards says why; score these rows again",
        )


def pick(
    candidates: Sequence[Candidate], tuning: SplitSamples, settings: SelectionSettings
) -> Candidate | None:
    """Return the candidate that goes to the held-out prompts."""
    eligible = sorted((c for c in candidates if c.eligible), key=caution)
    if not eligible:
        return None

    ahead = tuning.agreed_differences if _peers(tuning, settings) else tuning.differences

    def mean_lead(one: Candidate) -> float:
        leads = ahead(one.alpha, ALIGNED_ALPHA)
        return float(leads.mean()) if leads.size else 0.0

    best = max(eligible, key=mean_lead)
    if settings.prefer == "best":
        return best
    for candidate in eligible:
        lead = estimate_mean(ahead(best.alpha, candidate.alpha), settings)
        if (lead.mean or 0.0) <= 0 or lead.p_value() > 1 - settings.confidence:
            return candidate
    return best


def in_sequence(candidates: Sequence[Candidate], first: Candidate) -> list[float]:
    """Return the alphas that held-out prompts are spent on, one after the other.

    Args:
        candidates: All of them, on tuning prompts.
        first: The one that goes there; smaller eligible ones follow, the largest of them first.
    """
    smaller = [c for c in candidates if c.eligible and caution(c) < caution(first)]
    return [first.alpha, *(c.alpha for c in sorted(smaller, key=caution, reverse=True))]


def _confirm(
    heldout: SplitSamples,
    alphas: Sequence[float],
    settings: SelectionSettings,
    prompt_sets: MeasureSets | None,
    *,
    ask_gates: bool,
    num_candidates: int,
) -> tuple[list[Confirmation], list[Guard], list[Gate]]:
    gates: list[Gate] = []

    def ask(alpha: float, scores: Sequence[Scores]) -> list[Guard]:
        level = gate_confidence(alphas.index(alpha), num_candidates, settings.confidence)
        rules = settings.model_copy(update={"confidence": level})
        found = [check_gate(one, alpha, rules) for one in scores]
        gates.extend(gate for gate, _ in found)
        return [guard for _, guard in found if guard is not None]

    def measure(alpha: float) -> tuple[Estimate, Sequence[Guard]]:
        estimate = estimate_mean(heldout.differences(alpha), settings)
        if alpha == ALIGNED_ALPHA:
            return estimate, ()
        guards = check_guards(heldout, alpha, split="heldout", settings=settings)
        if ask_gates and is_gain(estimate, estimate.p_value(settings.min_gain), settings):
            guards = [*guards, *ask(alpha, main_scores(heldout, alpha, settings))]
        return estimate, guards

    def ask_sets(alpha: float) -> Sequence[Guard]:
        scores = [] if prompt_sets is None else prompt_sets(alpha)
        _require_measured(scores, heldout, settings)
        return ask(alpha, scores)

    sequence, guards = confirm_in_sequence(
        alphas, measure, settings, ask_sets=ask_sets if ask_gates else None
    )
    return sequence, guards, gates


def _require_measured(
    scores: Sequence[Scores], heldout: SplitSamples, settings: SelectionSettings
) -> None:
    measured = {one.name for one in scores} | heldout.guard_rewards.keys()
    missing = settings.no_worse_than.keys() - measured
    if missing:
        raise EvaluationError(
            "a gate has nothing to measure",
            where=", ".join(sorted(missing)),
            expected="a set of prompts, or a reward model besides the first",
        )


def _record(one: Confirmation) -> dict[str, Any]:
    keys = ("alpha", "gain", "ci_low", "ci_high", "num_pairs", "p_value")
    return {key: getattr(one, key) for key in keys}


def _nearest(candidates: Sequence[Candidate]) -> float:
    """Return the alpha that came nearest to being tried; 0 where there is no other."""
    others = [c for c in candidates if c.alpha != 0]
    finished = [c for c in others if c.dropped is None] or others
    nearest = highest_gain([c for c in finished if not c.stopped_by] or finished)
    return ALIGNED_ALPHA if nearest is None else nearest.alpha
