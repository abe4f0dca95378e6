"""Who answered, and how: what every answer carries, so that only like is compared with like."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from expo_ray.checkpoints import Checkpoint
from expo_ray.json_text import parse_json
from expo_ray.tables.thoughts import AUTO, Reasoning

IDENTITY = ("weights_digest", "sampling", "chat_template")
"""The weights, and the settings under which they answered."""
_TEMPLATE, _CONFIG = "chat_template.jinja", "tokenizer_config.json"


def identity_of(
    weights_digest: str, sampling: Mapping[str, Any], checkpoint: Checkpoint, reasoning: Reasoning
) -> dict[str, str]:
    """Return what a model's answers say of how they were made, as plain texts.

    Args:
        weights_digest: Of the weights that answered.
        sampling: Settings.
        checkpoint: Where the tokenizer lies.
        reasoning: How thoughts were told from answers.
    """
    # Answers from before this setting stay comparable.
    sampling = {**sampling, **({} if reasoning == AUTO else {"reasoning": str(reasoning)})}
    texts = (weights_digest, json.dumps(sampling, sort_keys=True), template_digest(checkpoint))
    return dict(zip(IDENTITY, texts, strict=True))


def template_digest(checkpoint: Checkpoint) -> str:
    """Return the SHA-256 of a checkpoint's chat template, `none` where it has none."""
    template: Any = None
    if _TEMPLATE in checkpoint.sidecars:
        template = checkpoint.storage.read_bytes(_TEMPLATE).decode(errors="replace")
    elif _CONFIG in checkpoint.sidecars:
        template = parse_json(checkpoint.storage.read_bytes(_CONFIG)).get("chat_template")
    if template is None:
        return "none"
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def differing(sides: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[str]:
    """Return which settings are known of both sides and differ."""
    return [
        name
        for name in names
        if None not in (sides[0].get(name), sides[1].get(name)) and sides[0][name] != sides[1][name]
    ]
