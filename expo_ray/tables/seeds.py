"""Seeds of rows and the split of prompts: pure functions of names, so that any run repeats them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

from expo_ray.errors import ConfigError

Split = Literal["tuning", "heldout"]


def row_seed(run_seed: int, prompt_id: str, sample: int) -> int:
    """Return the seed of one response: the same for every alpha, batch, replica and resume.

    Candidates are so compared under common random numbers: they differ by alpha and not by luck.

    Args:
        run_seed: The seed of the run.
        prompt_id: Which prompt.
        sample: Which of the samples of this prompt, from 0.

    Returns:
        An integer in 0 .. 2**63 - 1.
    """
    return int.from_bytes(_digest(run_seed, prompt_id, sample)[:8], "big") >> 1


def assign_splits(
    prompt_ids: Sequence[str], *, heldout_fraction: float, seed: int
) -> dict[str, Split]:
    """Deal prompts into tuning and held-out, independent of their order in the file.

    Args:
        prompt_ids: The ids, each once.
        heldout_fraction: Share of held-out prompts, 0 to below 1. Rounded to whole prompts; a
            share above 0 leaves at least one prompt on each side.
        seed: The seed of the run.

    Returns:
        The split of each id, in the order given.

    Raises:
        ConfigError: The fraction is out of range, or one prompt is to be dealt to two sides.
    """
    if not 0 <= heldout_fraction < 1:
        raise ConfigError(
            "the held-out fraction is out of range",
            where="heldout_fraction",
            got=heldout_fraction,
            expected="0 or more, below 1",
        )
    num_heldout = round(heldout_fraction * len(prompt_ids))
    if heldout_fraction > 0:
        if len(prompt_ids) < 2:
            raise ConfigError(
                "too few prompts to hold some out",
                where="prompts",
                got=len(prompt_ids),
                expected="2 or more",
                hint="some prompts choose alpha, others confirm it: give more",
            )
        num_heldout = min(max(num_heldout, 1), len(prompt_ids) - 1)
    heldout = set(shuffled(prompt_ids, seed=seed, purpose="split")[:num_heldout])
    return {i: "heldout" if i in heldout else "tuning" for i in prompt_ids}


def shuffled(prompt_ids: Sequence[str], *, seed: int, purpose: str) -> list[str]:
    """Return ids in a random order that depends on each id alone, not on their number or order.

    Args:
        prompt_ids: The ids, each once.
        seed: The seed of the run.
        purpose: What the order is for; another purpose gives an independent order.
    """
    return sorted(prompt_ids, key=lambda prompt_id: _digest(seed, prompt_id, purpose))


def _digest(*parts: object) -> bytes:
    # repr keeps ("1", 2) and (1, "2") apart and quotes any separator inside a prompt_id.
    return hashlib.sha256(repr(parts).encode()).digest()
