"""What writing FP8 blocks again takes and costs. Of plans and records alone, without torch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from expo_ray.extrapolation.pairing.tensor_pair import TensorPair

REQUANTIZATION = "e4m3, largest magnitude of the block at 448"
# More than this of alpha * delta gone is worth a warning.
WARN_SHARE = 0.5

_ITEM_BYTES = 4


def requantization_memory_bytes(
    tensors: Sequence[TensorPair], num_outputs: int, budget_bytes: int
) -> int:
    """Return what FP8 tensors take beside the buffers of a task: scales, and blocks too long."""
    if not num_outputs:
        return 0
    needed = 0
    for pair in tensors:
        if pair.blocks is None:
            continue
        shape = pair.aligned.shape
        scales_bytes = _ITEM_BYTES * math.prod(pair.blocks.scales_of(shape)) * num_outputs
        slot_bytes = block_row_bytes(pair) * (2 + 2 * num_outputs)
        needed = max(needed, scales_bytes + max(0, slot_bytes - budget_bytes))
    return needed


def block_row_bytes(pair: TensorPair) -> int:
    """Return the bytes of the values that must be at hand together, 0 for plain weights."""
    if pair.blocks is None:
        return 0
    return _ITEM_BYTES * pair.blocks.block_row_elements(pair.aligned.shape)


def requantization_loss(tensors: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Add up over a checkpoint what requantizing cost.

    Args:
        tensors: Facts with statistics, as receipts have them.

    Returns:
        `relative_error`: norm of the rounding error over the norm of the weights;
        `error_to_update`: over the norm of what extrapolation changed, alpha * delta;
        `share_of_updates_lost`: of the elements that delta moves, those that get the code which
        aligned's own value would get.
    """
    squares = dict.fromkeys(("error_norm", "output_norm", "update_norm"), 0.0)
    num_tensors = num_elements = moved = 0
    lost = 0.0
    for facts in tensors:
        row = facts.get("statistics", {})
        if "requantization" not in row:
            continue
        num_tensors += 1
        num_elements += row["num_elements"]
        for key in squares:
            squares[key] += row["requantization"][key] ** 2
        lost += row["share_lost_to_rounding"] * row["num_elements"]
        moved += row.get("num_kept_by_transforms", row["num_moved"])
    norms = [math.sqrt(value) for value in squares.values()]
    return {
        "num_tensors": num_tensors,
        "num_elements": num_elements,
        "relative_error": norms[0] / norms[1] if norms[1] else 0.0,
        "error_to_update": norms[0] / norms[2] if norms[2] else None,
        "share_of_updates_lost": lost / moved if moved else 0.0,
    }


def describe_loss(loss: Mapping[str, Any]) -> str:
    """Return in words what requantizing cost, as a warning where it cost most of the update."""
    ratio = loss["error_to_update"]
    text = (
        f"{loss['share_of_updates_lost']:.1%} of the changed elements keep the FP8 code of "
        f"aligned's value, the rounding error is {loss['relative_error']:.2%} of the weights"
    )
    if ratio is not None:
        text += f" and {ratio:.3g} times the update alpha * delta"
    if loss["share_of_updates_lost"] > WARN_SHARE or (ratio or 0.0) > WARN_SHARE:
        return (
            f"warning: the update is small against the steps of FP8: {text}; "
            "--output-dtype bfloat16 keeps more of it"
        )
    return f"requantized: {text}"
