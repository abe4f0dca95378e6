"""Sampling for vLLM in which a row's token depends on (seed, position) and its own logits alone.

vLLM's own seeds draw from a generator per request, whose noise is by rank in the vocabulary and
moves with every other use of it; here the noise is that of the transformers engine. vLLM is not
even told the seed: it would draw once more for nothing, on GPUs by a slower kernel, and on CPUs its
engine dies as soon as a prompt is processed in parts, because it then winds a generator back. Nor
is it told top-k and top-p: on CPUs it would sort the whole vocabulary to keep one token of one.
Shapes: B rows of vLLM's batch, V vocabulary, S of them with a seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from vllm.sampling_params import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.interface import MoveDirectionality

from expo_ray.serving.row_sampling import draw_tokens

PROCESSOR = f"{__name__}:SeededNoise"
_SEED = "expo_ray_seed"
_KEPT = "expo_ray_kept"
"""Top-k, 0 for all, and top-p."""


def take_seed(params: SamplingParams) -> None:
    """Move seed, top-k and top-p of a request to where `SeededNoise` finds them and vLLM does not.

    Args:
        params: The request's own; changed in place.
    """
    # A client may send arguments of any name; these are ours.
    own = (_SEED, _KEPT)
    others = {name: value for name, value in (params.extra_args or {}).items() if name not in own}
    if params.seed is not None:
        others[_SEED] = params.seed % 2**63
        others[_KEPT] = [max(params.top_k, 0), params.top_p]
        params.seed, params.top_k, params.top_p = None, 0, 1.0
    params.extra_args = others or None


class SeededNoise(LogitsProcessor):  # type: ignore[misc]
    """Draws the token of every row that has a seed; rows without one are vLLM's."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        # vLLM's index in the batch -> (settings, tokens so far: a list that grows by itself).
        self._rows: dict[int, tuple[SamplingParams, list[int]]] = {}
        self._device = device

    def is_argmax_invariant(self) -> bool:
        """Run after the temperature, and not for greedy rows."""
        return True

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow rows that come, go and move within the batch."""
        if batch_update is None:
            return
        for index in batch_update.removed:
            self._rows.pop(index, None)
        for index, params, _, output_ids in batch_update.added:
            self._rows.pop(index, None)
            if _SEED in (params.extra_args or {}):
                self._rows[index] = (params, output_ids)
        for start, end, direction in batch_update.moved:
            moving, replaced = self._rows.pop(start, None), self._rows.pop(end, None)
            if moving is not None:
                self._rows[end] = moving
            if replaced is not None and direction == MoveDirectionality.SWAP:
                self._rows[start] = replaced

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """Leave one token to rows with a seed.

        Args:
            logits: [B, V], penalties and temperature applied.
        """
        rows = {i: row for i, row in sorted(self._rows.items()) if row[0].temperature > 0}
        if not rows:
            return logits
        index_s = torch.tensor([*rows], device=self._device)
        num_rows, vocab_size = logits.shape

        def column(values: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype, device=self._device)

        asked = [row[0].extra_args for row in rows.values()]
        top_k, top_p = zip(*(each[_KEPT] for each in asked), strict=True)
        limits = [min(k or vocab_size, vocab_size) for k in top_k]
        chosen_s1 = draw_tokens(
            logits if len(rows) == num_rows else logits[index_s],
            seeds_b=column([each[_SEED] for each in asked], torch.int64),
            position=column([len(row[1]) for row in rows.values()], torch.int64),
            top_k_b1=column(limits, torch.int64)[:, None],
            top_p_b1=column(top_p, torch.float64)[:, None],
        )
        logits.index_fill_(0, index_s, -torch.inf)
        logits[index_s, chosen_s1[:, 0]] = 0.0
        return logits
