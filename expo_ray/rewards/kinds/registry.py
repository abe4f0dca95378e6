"""The kinds of reward models there are. A new one is a file beside this one and a line below."""

from __future__ import annotations

from expo_ray.rewards.kinds.check import CHECK
from expo_ray.rewards.kinds.checkpoint import CHECKPOINT
from expo_ray.rewards.kinds.implicit import IMPLICIT
from expo_ray.rewards.kinds.judge import JUDGE
from expo_ray.rewards.kinds.kind import RewardKind

REWARD_KINDS: dict[str, RewardKind] = {
    kind.name: kind for kind in (CHECKPOINT, IMPLICIT, JUDGE, CHECK)
}
"""By name, in the order in which `--help` tells of them."""


def kind_of(text: str) -> RewardKind:
    """Return the kind that a `--reward-model`, or the name in a rewards table, is of."""
    for kind in REWARD_KINDS.values():
        is_bare = kind.takes_bare_word and text == kind.prefix[:-1]
        if is_bare or (kind.prefix and text.startswith(kind.prefix)):
            return kind
    return CHECKPOINT


def reward_forms() -> str:
    """Return how reward models are written: `a checkpoint, ... or ...`."""
    *first, last = (kind.form for kind in REWARD_KINDS.values())
    return f"{', '.join(first)} or {last}"
