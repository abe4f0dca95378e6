"""Where the files of a laboratory lie. Light: planning a run needs no Ray and no training code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from expo_ray.lab.settings import LabSettings


@dataclass(frozen=True, kw_only=True, slots=True)
class LabResult:
    """Paths of a finished laboratory."""

    folder: Path
    initial: Path
    aligned: Path
    reward_model: Path
    guard_reward_model: Path | None
    """None where the settings ask for none."""
    prompts: Path
    """JSONL of the held-out evaluation prompts."""
    record: Path
    """`lab.json`: settings and training facts. Written last: it marks the whole as complete."""


def lab_paths(cache: str | Path, settings: LabSettings) -> LabResult:
    """Return the paths that these settings have below `cache`, whether or not they exist."""
    folder = Path(cache) / settings.digest()[:16]
    return LabResult(
        folder=folder,
        initial=folder / "initial",
        aligned=folder / "aligned",
        reward_model=folder / "reward-model",
        guard_reward_model=folder / "guard-reward-model" if settings.guard_reward_model else None,
        prompts=folder / "prompts.jsonl",
        record=folder / "lab.json",
    )


def find_lab(cache: str | Path, settings: LabSettings) -> LabResult | None:
    """Return the finished laboratory of these settings; None where it must be trained."""
    result = lab_paths(cache, settings)
    return result if result.record.exists() else None
