"""Synthetic trainings: paths of known shape through a space of weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from expo_ray.extrapolation.arithmetic.path_sums import PathSums, measure_path

KINDS = ("line", "curve", "walk", "noisy line")


def synthetic_path(
    kind: str, steps: Sequence[float], *, num_values: int = 2000, seed: int = 0
) -> NDArray[np.float64]:
    """Return checkpoints [N, values] of one of KINDS; the base is much larger than the change."""
    random = np.random.default_rng(seed)
    time = np.asarray(steps, dtype=np.float64) / 100
    base, direction = random.normal(size=(2, num_values)) * [[20.0], [1.0]]
    walked = random.normal(size=(len(time), num_values))
    walked *= np.sqrt(np.diff(time, prepend=time[0]))[:, None]
    path = {
        "line": np.outer(time, direction),
        "curve": np.outer(1 - np.exp(-time), direction),
        "walk": walked.cumsum(axis=0),
        "noisy line": np.outer(time, direction) + 0.3 * random.normal(size=walked.shape),
    }[kind]
    found: NDArray[np.float64] = base + path
    return found


def measured(
    path: NDArray[np.float64], dtype: torch.dtype = torch.float32, num_tensors: int = 2
) -> Mapping[str, PathSums]:
    """Return the sums of a path that is cut into tensors."""
    parts = torch.from_numpy(path).to(dtype).tensor_split(num_tensors, dim=1)
    return {f"model.layers.{i}.mlp.weight": measure_path(list(p)) for i, p in enumerate(parts)}
