"""Which part of a model a tensor belongs to, told from its name: for statistics, never for work."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable

GROUPS = ("embeddings", "attention", "mlp", "norms", "lm_head", "other")

# First match wins: post_attention_layernorm is a norm, mlp.gate of a router belongs to the mlp.
_PATTERNS = (
    (
        "lm_head",
        re.compile(r"(^|\.)(lm_head|embed_out|score|v_head|classifier)\.|^output\.weight$"),
    ),
    ("norms", re.compile(r"norm|(^|\.)ln_|(^|\.)ln\d?\.|layer_?norm", re.IGNORECASE)),
    (
        "embeddings",
        re.compile(r"embed|(^|\.)(wte|wpe|shared|tok_embeddings)\.", re.IGNORECASE),
    ),
    (
        "attention",
        re.compile(r"attn|attention|(^|\.)(q|k|v|o|qkv|wq|wk|wv|wo)(_proj)?\.", re.IGNORECASE),
    ),
    (
        "mlp",
        re.compile(
            r"mlp|feed_forward|ffn|experts?|moe|router|(^|\.)(fc\d?|w[123]|wi(_\d)?|gate|c_fc)\."
            r"|(gate|up|down)_proj|DenseReluDense",
            re.IGNORECASE,
        ),
    ),
)
_EXPERT = re.compile(r"\bexperts\.\d+\b")
_LAYER = re.compile(r"((?:^|.*?\.)(?:layers?|h|blocks?))\.(\d+)\.")


def module_group(name: str) -> str:
    """Return one of GROUPS for the name of a tensor."""
    return next((group for group, pattern in _PATTERNS if pattern.search(name)), "other")


def layer_index(name: str) -> int | None:
    """Return the depth of the layer a tensor is in, None outside of layers."""
    position = layer_position(name)
    return position[1] if position else None


def layer_position(name: str) -> tuple[str, int] | None:
    """Return the stack of layers a tensor is in and its depth there, None outside of layers.

    `model.layers.3.mlp.up_proj.weight` is ("model.layers", 3); a vision tower is another stack.
    """
    match = _LAYER.match(name)
    return (match[1], int(match[2])) if match else None


def module_name(name: str) -> str:
    """Return the name of a tensor inside its layer; the experts of one layer share theirs."""
    match = _LAYER.match(name)
    return _EXPERT.sub("experts.*", name[match.end() :] if match else name)


def stack_labels(stacks: Iterable[str]) -> dict[str, str]:
    """Return short names of stacks of layers, empty where there is one only.

    `model.vision_tower.encoder.layers` and `model.language_model.layers` are `vision_tower.encoder`
    and `language_model`.
    """
    known = list(dict.fromkeys(stacks))
    if len(known) < 2:
        return dict.fromkeys(known, "")
    paths = {stack: stack.split(".")[:-1] for stack in known}
    columns = zip(*paths.values(), strict=False)
    num_common = len(list(itertools.takewhile(lambda parts: len(set(parts)) == 1, columns)))
    return {s: ".".join(path[num_common:]) or s for s, path in paths.items()}
