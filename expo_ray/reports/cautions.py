"""What a reader must know before believing the verdict: warnings, worst first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow.compute as pc

from expo_ray.reports.run_files import RunFiles
from expo_ray.reports.throughput import Throughput
from expo_ray.reports.truth import TruthVerdict
from expo_ray.reports.wording import format_alpha, heldout, number, percent, rejected_alpha, signed

LONGER = 1.15
SMALL_SAMPLE = 100


def cautions(
    run: RunFiles, *, truth: TruthVerdict | None, throughput: Throughput | None
) -> list[str]:
    """Return the warnings of a run in plain sentences."""
    found = [
        *_about_truth(run.selection, truth),
        *_about_the_grid(run.selection),
        *_about_length(run.selection),
        *_about_errors(run.selection),
        *_about_too_long(run),
        *_about_numbers(run.selection),
    ]
    if throughput is not None and throughput.void:
        found.append(
            "At some points of the load test the client could not keep up; their numbers are void."
        )
    found.extend(
        f"This run was not logged to {name}: {entry['error']}. A rerun tries again."
        for name, entry in run.tracking.items()
        if "error" in entry
    )
    if run.lab:
        found.append(
            "This run is a laboratory: models of under a million parameters, trained in a minute "
            "on an artificial task. It shows the method at work, not what a large model gains."
        )
    return found


def _about_truth(selection: Mapping[str, Any], truth: TruthVerdict | None) -> Iterator[str]:
    if truth is not None and truth.fell and selection["verdict"] == "extrapolate":
        yield (
            "The reward rose, but the hidden truth of the laboratory fell: by that measure this "
            "choice is wrong. Outside a laboratory this figure does not exist."
        )


def _about_the_grid(selection: Mapping[str, Any]) -> Iterator[str]:
    warnings = selection.get("warnings", ())
    yield from (f"{text[:1].upper()}{text[1:].rstrip('.')}." for text in warnings)
    measured = [c for c in selection["candidates"] if c["mean_reward"] is not None]
    if len(measured) < 2 or any("largest alpha" in text for text in warnings):
        return
    edge = max(measured, key=lambda c: float(c["alpha"]))
    best = max(measured, key=lambda c: float(c["mean_reward"]))
    what = "The reward is highest" if best is edge else "The choice lies"
    if 0 < selection["best_alpha"] < edge["alpha"]:
        return  # what lies at the edge is known, and is not wanted
    if edge["alpha"] > 0 and (best is edge or selection["best_alpha"] == edge["alpha"]):
        yield (
            f"{what} at the largest candidate, alpha {format_alpha(edge['alpha'])}: the edge of "
            "the grid. Either the optimum lies beyond it, or the reward model is being "
            "over-optimised; length and guards may tell which."
        )


def _about_length(selection: Mapping[str, Any]) -> Iterator[str]:
    alpha = selection["best_alpha"] or rejected_alpha(selection)
    candidate = next((c for c in selection["candidates"] if c["alpha"] == alpha), None)
    ratio = candidate["length_ratio"] if candidate else None
    if candidate and ratio is not None and ratio >= LONGER:
        yield (
            f"Responses at alpha {format_alpha(candidate['alpha'])} are {number(ratio, 2)} times "
            "as long as those of the aligned model. Reward models often favour length; "
            + _at_equal_length(candidate)
        )


def _at_equal_length(candidate: Mapping[str, Any]) -> str:
    gain, controlled = candidate.get("gain"), candidate.get("length_controlled_gain")
    if gain is None or controlled is None:
        return "part of the gain may be that."
    return f"of the gain of {signed(gain)}, {signed(controlled)} would remain at equal length."


def _about_errors(selection: Mapping[str, Any]) -> Iterator[str]:
    failed = [c for c in selection["candidates"] if c["num_errors"]]
    if failed:
        parts = ", ".join(
            f"{c['num_errors']} at alpha {format_alpha(c['alpha'])} "
            f"({percent(c['num_errors'] / (c['num_pairs'] + c['num_errors']))})"
            for c in failed
        )
        yield f"Some responses could not be produced or scored: {parts}. They are left out."


def _about_too_long(run: RunFiles) -> Iterator[str]:
    """Chats longer than the reward model reads, by alpha: longer answers meet that more often."""
    counts = {
        alpha: rewards.filter(pc.fill_null(rewards["truncated"], False))["reward"]
        for alpha, rewards in run.scoring_rewards.items()
        if "truncated" in rewards.column_names
    }
    parts = ", ".join(
        f"{len(found)} at alpha {format_alpha(alpha)} ({found.null_count} refused)"
        for alpha, found in counts.items()
        if len(found)
    )
    if parts:
        yield (
            f"Some chats are longer than the reward model reads: {parts}; of those that were not "
            "refused it saw the end alone."
        )


def _about_numbers(selection: Mapping[str, Any]) -> Iterator[str]:
    pairs = heldout(selection).get("num_pairs")
    if pairs is not None and pairs < SMALL_SAMPLE and not selection.get("unfit"):
        yield (
            f"Only {pairs} held-out prompts: small gains stay undetected, and the interval is "
            "wide. Four times as many prompts halve it."
        )
