"""The page of a controlled experiment, from its `study.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expo_ray.lab.studies.study import STUDY_NAME
from expo_ray.reports.drawing import Drawing
from expo_ray.reports.run_files import read_json
from expo_ray.reports.study_figure import study_figure


def is_study(folder: Path) -> bool:
    """Say whether a folder holds the result of a controlled experiment."""
    return (folder / STUDY_NAME).is_file()


def study_page(folder: Path) -> tuple[dict[str, Any], list[Drawing]]:
    """Return what the page shows, and its figure.

    Raises:
        ConfigError: The JSON file is malformed.
    """
    found = read_json(folder / STUDY_NAME)
    drawing = study_figure(found)
    page = {
        "found": found,
        "seeds": [str(seed) for seed in found["settings"]["seeds"]],
        "over_seeds": has_seeds_interval(found),
        "warned_sentence": warned_sentence(found),
        "has_published": any(arm["published"] for arm in found["arms"]),
        "figures": {drawing.name: drawing},
    }
    return page, [drawing]


def has_seeds_interval(found: Mapping[str, Any]) -> bool:
    """Say whether there were enough seeds for an interval over them."""
    return any(arm["gain"]["seeds_ci_low"] is not None for arm in found["arms"])


def warned_sentence(found: Mapping[str, Any]) -> str | None:
    """Say of whom `diagnose` had warned; None where every pair is an alignment step."""
    steps, others = found["warned"]["alignment_steps"], found["warned"]["others"]
    if not others["num_pairs"]:
        return None
    return (
        f"`diagnose` had warned of {others['num_warned']} of {others['num_pairs']} pairs that are "
        f"no alignment step ({others['num_unfit']} called unfit), and of {steps['num_warned']} of "
        f"{steps['num_pairs']} that are one."
    )
