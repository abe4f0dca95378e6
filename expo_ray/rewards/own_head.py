"""Reward models whose head transformers does not know: its backbone, and a head of our own.

The code that lies beside such weights is never run.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoModel

from expo_ray.checkpoints import Checkpoint, iter_tensors
from expo_ray.errors import CheckpointError
from expo_ray.rewards.pretrained import load_pretrained


def load_with_head(
    checkpoint: Checkpoint,
    head: torch.nn.Module,
    *,
    prefix: str,
    device: str,
    dtype: torch.dtype | None = None,
) -> Any:
    """Load a backbone and fill its head, which is kept in float32.

    Args:
        checkpoint: Both.
        head: Its parameters have the names that they have in the checkpoint.
        prefix: What the names of the backbone's tensors begin with.
        device: "cpu" or "cuda".
        dtype: Compute in this dtype; None takes float32 on the CPU, else the checkpoint's.

    Returns:
        The backbone.

    Raises:
        CheckpointError: A tensor of backbone or head is missing or has another shape.
    """
    wanted = head.state_dict().keys()
    found: dict[str, torch.Tensor] = {}

    def backbone() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in iter_tensors(checkpoint):
            if name in wanted:
                found[name] = tensor.float()
            elif name.startswith(prefix):
                yield name.removeprefix(prefix), tensor

    model = load_pretrained(
        AutoModel, checkpoint, backbone(), device=device, dtype=dtype, allow_unexpected=True
    )
    try:
        head.load_state_dict(found)
    except RuntimeError as error:
        raise CheckpointError(
            "the head of the reward model is not in its checkpoint",
            where=checkpoint.uri,
            got=error,
            expected=", ".join(sorted(wanted)),
        ) from error
    head.to(device).eval()
    return model
