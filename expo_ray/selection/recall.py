"""Candidates that a race dropped, asked after all where those ahead of them were stopped.

A race drops whoever would hardly be chosen on tuning prompts. Guards and gates speak on held-out
prompts, later, and they stop the larger steps first: the next smaller candidate has its turn then,
and it may be one that was dropped for standing behind. It answers the remaining tuning prompts and
is judged on all of them, like everybody on the full grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from expo_ray.selection.search import Look, SearchResult, caution


def to_recall(search: SearchResult, selection: Mapping[str, Any]) -> float | None:
    """Return the next smaller candidate, if it is one that was dropped for standing behind.

    Args:
        search: What was dropped.
        selection: Chosen from what is answered so far.
    """
    sequence = selection["heldout_sequence"]
    if not sequence:
        return None
    last = sequence[-1]
    is_waiting = last["num_pairs"] == 0
    if is_waiting and len(sequence) > 1:
        before, after = sequence[-2]["alpha"], caution(last["alpha"])
    elif last["outcome"] == "stopped":
        before, after = last["alpha"], (0.0, False)
    else:
        return None
    between = [a for a in may_be_recalled(search, before) if caution(a) > after]
    return max(between, key=caution, default=None)


def may_be_recalled(search: SearchResult, before: float) -> list[float]:
    """Return the smaller candidates whose turn may come although they were dropped.

    Args:
        search: What was dropped.
        before: The candidate that goes before them.
    """
    return [alpha for alpha in search.spared if caution(alpha) < caution(before)]


def recall(search: SearchResult, alpha: float, selection: Mapping[str, Any]) -> SearchResult:
    """Return the search after a dropped candidate has answered all tuning prompts.

    Args:
        search: The one that dropped it.
        alpha: The candidate.
        selection: In which its turn came. What went first stays first, so that a candidate that
            was asked is never left out of the sequence.
    """
    look = Look(
        round=search.looks[-1].round + 1,
        alphas=(alpha,),
        num_prompts=search.num_tuning,
        dropped=(),
        why={},
    )
    return replace(
        search,
        num_answered={**search.num_answered, alpha: search.num_tuning},
        dropped={a: why for a, why in search.dropped.items() if a != alpha},
        looks=(*search.looks, look),
        spared=search.spared - {alpha},
        recalled=(*search.recalled, alpha),
        first=selection["heldout_sequence"][0]["alpha"],
    )
