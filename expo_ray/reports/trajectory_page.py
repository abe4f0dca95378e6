"""The page of a trajectory's diagnosis, from the file that `diagnose --trajectory` writes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expo_ray.extrapolation.trajectories.diagnosis_file import DIAGNOSIS_NAME
from expo_ray.extrapolation.trajectories.trajectory_file import step_name
from expo_ray.reports.drawing import Drawing
from expo_ray.reports.run_files import read_json
from expo_ray.reports.trajectory_figures import drawings_of

_HEADLINES = {
    "keep": "Keep the last checkpoint",
    "unknown": "Keep the last checkpoint: nothing could be tested",
}


def is_trajectory(folder: Path) -> bool:
    """Say whether a folder holds a trajectory's diagnosis and is no run directory."""
    return (folder / DIAGNOSIS_NAME).is_file() and not (folder / "selection.json").is_file()


def trajectory_page(folder: Path) -> tuple[dict[str, Any], list[Drawing]]:
    """Return what the page shows, and its figures.

    Raises:
        ConfigError: The JSON file is malformed.
    """
    found = read_json(folder / DIAGNOSIS_NAME)
    drawings = drawings_of(found)
    page = {
        "found": found,
        "headline": headline(found),
        "horizons": sorted({score["horizon"] for score in found["scores"]}),
        "rows": score_rows(found),
        "cautions": cautions(found),
        "step_name": step_name,
        "figures": {drawing.name: drawing for drawing in drawings},
    }
    return page, drawings


def headline(found: Mapping[str, Any]) -> str:
    """Return the verdict in a few words."""
    verdict = found["verdict"]
    if verdict["decision"] in _HEADLINES:
        return _HEADLINES[verdict["decision"]]
    return (
        f"{verdict['forecast']} may be trusted up to {verdict['horizon']:g} times the span "
        f"(alpha {verdict['alpha']:g})"
    )


def score_rows(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row for each forecast, with its scores by horizon."""
    rows: dict[str, dict[float, Any]] = {}
    for score in found["scores"]:
        rows.setdefault(score["forecast"], {})[score["horizon"]] = score
    reach = found["verdict"]["reach"]
    return [
        {"forecast": name, "scores": scores, "reach": reach.get(name)}
        for name, scores in rows.items()
    ]


def cautions(found: Mapping[str, Any]) -> list[str]:
    """Return what limits the verdict."""
    texts = []
    share = found["share_rounding"]
    if share is not None and share > 0.5:
        texts.append(
            f"{share:.0%} of the squared steps between neighbouring checkpoints is rounding to "
            "their dtype. Lengths, cosines and shares of directions below are those of the stored "
            "numbers, rounding included."
        )
    horizon = found["verdict"]["horizon"]
    if horizon is not None and horizon >= 3:
        texts.append(
            f"Only the first {1 / horizon:.0%} of the run could be tested at {horizon:g} times its "
            "span: whether the whole run goes on like its beginning is not known."
        )
    texts.append(
        "Distances in weights are not rewards: expo-ray select, or a benchmark, has the last word."
    )
    return texts
