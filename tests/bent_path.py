"""A training of pico checkpoints on a bent path, and the file that lists them."""

from __future__ import annotations

from pathlib import Path

import yaml

from expo_ray.extrapolation import extrapolate

STEPS = (0, 100, 250, 400)


def bent_path(folder: Path, pair: tuple[Path, Path]) -> Path:
    """Write checkpoints at uneven places between the two; return the file that lists all four."""
    places = {STEPS[0]: pair[0], STEPS[-1]: pair[1]}
    for step, alpha in ((STEPS[1], -0.5), (STEPS[2], -0.2)):
        places[step] = folder / f"step-{step}"
        extrapolate(*pair, places[step], alpha=alpha, address="inline")
    file = folder / "trajectory.yaml"
    file.write_text(yaml.safe_dump([{"step": s, "checkpoint": str(places[s])} for s in STEPS]))
    return file
