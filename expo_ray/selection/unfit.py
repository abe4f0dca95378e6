"""A pair that is not fit for extrapolation: the verdict on it where it is not evaluated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from expo_ray.extrapolation.diagnosis import DIRECT_PARENT
from expo_ray.extrapolation.planning.alpha import ALIGNED_ALPHA
from expo_ray.selection.candidates import Candidate
from expo_ray.selection.choice import SCHEMA_VERSION
from expo_ray.selection.settings import SelectionSettings


def explain_unfit(reasons: Sequence[str]) -> str:
    """Say why a pair is not fit.

    Args:
        reasons: Of `diagnose`.
    """
    return f"the pair is not fit for extrapolation: {'; '.join(reasons)}"


def keep_unfit(reasons: Sequence[str], settings: SelectionSettings) -> dict[str, Any]:
    """Return the selection of a pair that is not evaluated, because its delta is no alignment.

    Rewards can rise along any direction (benchmarks/results/selection_proof.md: for 7 of 30
    unrelated models they did), so they are not asked.

    Args:
        reasons: Why it is not fit, of `diagnose`.
        settings: The rules that would have been used.

    Returns:
        The content of selection.json: alpha 0 as the one candidate, its figures null.
    """
    unmeasured = dict.fromkeys(("gain", "ci_low", "ci_high", "p_value"))
    aligned = dict.fromkeys(figure.name for figure in fields(Candidate)) | {
        **{"alpha": ALIGNED_ALPHA, "num_pairs": 0, "num_errors": 0, "stopped_by": []},
        **{"collapsed": False, "eligible": False},
    }
    return {
        "schema_version": SCHEMA_VERSION,
        "best_alpha": ALIGNED_ALPHA,
        "verdict": "keep-aligned",
        "reason": f"{explain_unfit(reasons)}; {DIRECT_PARENT}",
        "unfit": list(reasons),
        "tried_alpha": None,
        "rejected_alpha": None,
        "num_tuning": 0,
        "num_heldout": 0,
        "candidates": [aligned],
        "guards": [],
        "gates": [],
        "heldout": {"alpha": ALIGNED_ALPHA, **unmeasured, "num_pairs": 0, "confirmed": False},
        "heldout_sequence": [],
        "first_order": None,
        "search": None,
        "measurement_spread": None,
        "unreadable": [],
        "warnings": [],
        "settings": settings.model_dump(),
    }
