"""The verdict in plain words: what was found, on how many prompts, and why not more."""

from __future__ import annotations

from collections.abc import Sequence

from expo_ray.selection.candidates import Candidate, highest_gain
from expo_ray.selection.guard_findings import Guard
from expo_ray.selection.heldout_sequence import Confirmation
from expo_ray.selection.samples import made_from_pair
from expo_ray.selection.settings import SelectionSettings


def explain_tried(
    candidates: Sequence[Candidate],
    sequence: Sequence[Confirmation],
    guards: Sequence[Guard],
    settings: SelectionSettings,
    *,
    num_judges: int,
) -> str:
    """Explain what became of the alphas that went to the held-out prompts.

    Args:
        candidates: All of them, on tuning prompts.
        sequence: Those that went there, in their order.
        guards: The guards on held-out prompts.
        settings: The rules.
        num_judges: How many reward models ordered the candidates.
    """
    words = [_explain_stop(one, guards, settings) for one in sequence[:-1]]
    words.append(_explain_last(candidates, sequence, guards, settings, num_judges))
    return "; then ".join(words)


def _explain_stop(one: Confirmation, guards: Sequence[Guard], settings: SelectionSettings) -> str:
    """Say why one candidate is not the choice."""
    start = f"alpha {one.alpha:g} gained on the tuning prompts, but"
    if one.gain is None or one.num_pairs < settings.min_pairs:
        return (
            f"{start} {one.num_pairs} held-out prompts are too few to confirm it "
            f"(at least {settings.min_pairs})"
        )
    fired = [guard.reason for guard in guards if guard.fired and guard.alpha == one.alpha]
    if fired:
        return f"{start} on {one.num_pairs} held-out prompts a guard fired: {'; '.join(fired)}"
    return (
        f"{start} the gain is not confirmed: the mean reward changes {_figures(one, settings)}"
        + (f"; it had to reach p = {one.level:.2g}" if settings.heldout_reserve else "")
    )


def _explain_last(
    candidates: Sequence[Candidate],
    sequence: Sequence[Confirmation],
    guards: Sequence[Guard],
    settings: SelectionSettings,
    num_judges: int,
) -> str:
    last = sequence[-1]
    if last.outcome != "confirmed":
        return _explain_stop(last, guards, settings)
    found = f"alpha {last.alpha:g} raises the mean reward {_figures(last, settings)}"
    if len(sequence) > 1:
        return f"{found}; it is the next smaller candidate that gained on the tuning prompts"
    if num_judges > 1:
        within = "" if settings.prefer == "best" else ", or the smallest within the noise of it"
        return (
            f"{found}; on the tuning prompts it is the best one in the mean of {num_judges} "
            f"reward models{within}"
        )
    best = highest_gain([c for c in candidates if c.eligible])
    rule = "it has the highest mean reward on the tuning prompts"
    if best is not None and best.alpha != last.alpha:
        rule = (
            "it is the smallest alpha whose gain on the tuning prompts is not significantly "
            f"below the highest one, of alpha {best.alpha:g}"
        )
    return f"{found}; {rule}"


def _figures(one: Confirmation, settings: SelectionSettings) -> str:
    return (
        f"by {one.gain:+.4g} ({settings.confidence:.0%} interval {one.ci_low:+.4g} "
        f"to {one.ci_high:+.4g}, p = {one.p_value:.2g}) on {one.num_pairs} held-out prompts"
    )


def explain_none(
    candidates: Sequence[Candidate], num_prompts: int, settings: SelectionSettings
) -> str:
    """Explain why no candidate went to the held-out prompts.

    Args:
        candidates: All of them, on tuning prompts.
        num_prompts: How many tuning prompts there are.
        settings: The rules.
    """
    others = [c for c in candidates if c.alpha != 0]
    if not others:
        return "there is no candidate besides the aligned model"
    if num_prompts < settings.min_pairs:
        return f"{num_prompts} tuning prompts are too few (at least {settings.min_pairs})"
    parts = [f"alpha {c.alpha:g} {_why_not(c, settings)}" for c in others]
    return f"no candidate holds up on {num_prompts} tuning prompts: {'; '.join(parts)}"


def warn_of_circle(judges: Sequence[str]) -> list[str]:
    """Return a warning when nobody but the pair itself says that a candidate is better, or guards.

    Args:
        judges: The scoring reward model, then the guards, as `--reward-model` or a table of rewards
            names them.
    """
    scoring, *guards = judges
    if not made_from_pair(scoring):
        if not guards or not all(map(made_from_pair, guards)):
            return []
        return [
            f"the only guard reward model is the log-ratio of the pair itself ({guards[0]}), which "
            "rises along the very step that is extrapolated, and hardly guards; give one that was "
            "not made from this pair"
        ]
    if not all(map(made_from_pair, guards)):
        return []
    return [
        f"the reward is the log-ratio of the pair itself ({judges[0]}), which rises along the very "
        "step that is extrapolated, and no other reward model guards: the verdict comes close to "
        "going in a circle; give a reward model that was not made from this pair"
    ]


def warn_of_cut_off(aligned: Candidate, settings: SelectionSettings) -> list[str]:
    """Return a warning when the aligned model's own answers are cut off too often to compare.

    Args:
        aligned: Alpha 0, on tuning prompts.
        settings: The rules.
    """
    share = aligned.truncation_rate
    if share is None or share <= settings.max_truncation_rate:
        return []
    return [
        f"{share:.0%} of the aligned model's own answers run into the token limit, so that halves "
        "of answers are compared: a larger max_tokens lets them end"
    ]


def warn_of_edge(candidates: Sequence[Candidate], settled: Candidate | None = None) -> list[str]:
    """Return a warning when the reward is highest at the end of the grid.

    Args:
        candidates: All of them.
        settled: The one that several reward models together prefer: where they stop before the
            end, it is known what lies there.
    """
    best = highest_gain(candidates)
    if best is None or best.alpha == 0 or best.alpha != max(c.alpha for c in candidates):
        return []
    if settled is not None and settled.alpha < best.alpha:
        return []
    return [
        f"the reward is highest at the largest alpha tried ({best.alpha:g}): the best one may lie "
        "beyond, or the reward model may be rewarding something else than quality"
    ]


def _why_not(candidate: Candidate, settings: SelectionSettings) -> str:
    if candidate.dropped is not None:
        return f"was dropped: {candidate.dropped}"
    if candidate.stopped_by:
        return f"was stopped by {', '.join(candidate.stopped_by)}"
    if candidate.gain is None or candidate.num_pairs < settings.min_pairs:
        return f"has only {candidate.num_pairs} prompts scored under both models"
    if candidate.gain <= settings.min_gain:
        spread = f", up to {settings.min_gain:.4g} is no gain" if settings.min_gain else ""
        high = candidate.gain_ci_high
        is_sure = high is not None and high <= settings.min_gain
        return f"{'does not gain' if is_sure else 'shows no gain'} ({candidate.gain:+.4g}{spread})"
    chance = f"adjusted p = {candidate.p_adjusted:.2g}"
    return f"gains {candidate.gain:+.4g}, which may be chance ({chance})"
