"""What extrapolation changed in the weights: delta by layer and module, from expo_ray.json."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expo_ray.extrapolation.pairing.modules import layer_position, module_name, stack_labels

_SUFFIX = re.compile(r"\.(weight|bias)$")


@dataclass(frozen=True, kw_only=True, slots=True)
class Deltas:
    """Relative norms of delta, in percent of the initial weights' norm."""

    overall: float
    modules: Sequence[str]
    layers: Sequence[str]
    cells: Mapping[tuple[str, str], float]
    others: Sequence[tuple[str, float]]
    """Tensors outside the layers, by name."""


def summarize(checkpoints: Mapping[float, Mapping[str, Any]]) -> Deltas | None:
    """Aggregate the tensor statistics of one checkpoint (delta is the same for every alpha)."""
    for record in checkpoints.values():
        tensors = record.get("tensors")
        if isinstance(tensors, dict) and tensors:
            return _aggregate(
                {name: facts.get("statistics", {}) for name, facts in tensors.items()}
            )
    return None


def _aggregate(statistics: Mapping[str, Mapping[str, Any]]) -> Deltas | None:
    labels = stack_labels(p[0] for p in map(layer_position, statistics) if p is not None)
    squares: defaultdict[tuple[str, str], list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, tensor in statistics.items():
        delta, initial = tensor.get("delta_norm"), tensor.get("initial_norm")
        if delta is None or initial is None:
            continue
        position = layer_position(name)
        key = (module_name(name), "")
        if position is not None:
            key = (f"{labels[position[0]]} {_module(name)}".strip(), str(position[1]))
        squares[key][0] += float(delta) ** 2
        squares[key][1] += float(initial) ** 2
    if not squares:
        return None
    relative = {key: _percent(delta, initial) for key, (delta, initial) in squares.items()}
    cells = {key: value for key, value in relative.items() if key[1] and math.isfinite(value)}
    totals = [sum(column) for column in zip(*squares.values(), strict=True)]
    return Deltas(
        overall=_percent(*totals),
        modules=list(dict.fromkeys(module for module, _ in cells)),
        layers=sorted({layer for _, layer in cells}, key=int),
        cells=cells,
        others=[(name, value) for (name, layer), value in relative.items() if not layer],
    )


def _module(name: str) -> str:
    return _SUFFIX.sub("", module_name(name))


def _percent(delta_squared: float, initial_squared: float) -> float:
    return 100 * math.sqrt(delta_squared / initial_squared) if initial_squared else math.nan
