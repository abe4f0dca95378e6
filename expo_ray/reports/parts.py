"""The search for an alpha by part of the model, in words and rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expo_ray.reports import wording

_NAMES = {"embeddings": "embeddings, head and the rest", "mlp": "MLP"}


def parts_sentence(selection: Mapping[str, Any]) -> str | None:
    """Say whether an alpha for each part beat the uniform one; None where none was searched.

    Args:
        selection: The content of selection.json.
    """
    found = selection.get("adaptive")
    if not found:
        return None
    uniform = f"the uniform alpha {wording.format_alpha(found['uniform_alpha'])}"
    tried = f"{found['num_trials']} trials"
    if found["heldout"] is None:
        return (
            f"An alpha for each part of the model was not found to be better than {uniform}: none "
            f"of {tried} had a higher mean on the tuning prompts."
        )
    result = wording.measured(selection, found["heldout"], over=uniform)
    best = f"the best of {tried} {result}"
    if found["is_better"]:
        return f"An alpha for each part of the model is better: {best}."
    return (
        f"An alpha for each part of the model did not prove better: {best}; {found['reason']}. "
        "The uniform alpha stands."
    )


def parts_page(selection: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what the report shows of the search; None where there was none."""
    found = selection.get("adaptive")
    if not found:
        return None
    return {
        **found,
        "sentence": parts_sentence(selection),
        "uniform_gain": found["trials"][0]["gain"],
        "rows": _rows(found["best"]["alphas"]),
        "num_stopped": sum(bool(trial["stopped_by"]) for trial in found["trials"]),
    }


def _rows(alphas: Mapping[str, float]) -> list[tuple[str, float, float]]:
    """Return (part, alpha in its first layer, alpha in its last), equal where there is no ramp."""
    parts = dict.fromkeys(key.partition(".")[0] for key in alphas)
    return [
        (
            _NAMES.get(part, part),
            alphas[part if part in alphas else f"{part}.first"],
            alphas[part if part in alphas else f"{part}.last"],
        )
        for part in parts
    ]
