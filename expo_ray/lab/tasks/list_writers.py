"""Who writes the lists: answers of random quality with their flaws, drawn at random."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from expo_ray.lab.tasks.drawing import DAMAGES, draw_closer, draw_opener, joined, pick
from expo_ray.lab.tasks.interface import LabTask
from expo_ray.lab.tasks.lists import (
    CATEGORIES,
    TEMPLATES,
    TRUTH_VERSION,
    Request,
    all_requests,
    heading,
    truth_reward,
)
from expo_ray.lab.tasks.rule_check import rule_check

VAGUE = "stuff"
# Longer than any good answer that is asked for; longer ones only cost time.
MAX_DAMAGED_WORDS = 26


@dataclass(frozen=True, kw_only=True, slots=True)
class Care:
    """How often one kind of writer makes each mistake, as probabilities."""

    miscount: float
    """Per list: one item too few or too many."""
    vague: float
    """Per item: a word that names nothing."""
    repeat: float
    """Per item: the one before it again."""
    forget: float
    """Per answer: the second list is missing."""


# Mistakes come together, as in data from annotators of different care: what alignment has to find
# is one direction towards the careful ones. Manners are drawn apart from care, so that a reward
# model cannot read the one from the other.
CARE = (
    Care(miscount=0.1, vague=0.0, repeat=0.0, forget=0.0),
    Care(miscount=0.3, vague=0.08, repeat=0.08, forget=0.05),
    Care(miscount=0.6, vague=0.25, repeat=0.2, forget=0.2),
)


def draw_pieces(rng: np.random.Generator, request: Request) -> list[str]:
    """Draw opener, two lists and closer from one writer: careful, hasty or careless."""
    care = pick(rng, CARE)
    pieces = [draw_opener(rng)]
    pieces += [_draw_list(rng, name, count, care) for name, count in request.parts]
    if rng.random() < care.forget:
        pieces[2] = ""
    return [*pieces, draw_closer(rng)]


def _draw_list(rng: np.random.Generator, category: str, count: int, care: Care) -> str:
    title = heading(category, count)
    if rng.random() < care.miscount:
        count += pick(rng, (-1, 1))
    # In the order of the dictionary: small models can then avoid repetitions, and see them.
    order = sorted(rng.permutation(len(CATEGORIES[category]))[:count])
    items = [CATEGORIES[category][i] for i in order]
    for i in range(count):
        draw = rng.random()
        if draw < care.vague:
            items[i] = VAGUE
        elif draw < care.vague + care.repeat:
            items[i] = items[i - 1]
    return f"{title}: {', '.join(items)}."


def damage(rng: np.random.Generator, answer: str, request: Request) -> str:
    """Break an answer in one of the ways that extrapolated models do."""
    return " ".join(_break(rng, answer, request).split()[:MAX_DAMAGED_WORDS])


def _break(rng: np.random.Generator, answer: str, request: Request) -> str:
    match int(rng.integers(7)):
        case 0:  # A list that does not end.
            part = pick(rng, request.parts)
            drawn = rng.choice(CATEGORIES[part[0]], size=int(rng.integers(6, 24)))
            return f"{answer} {heading(*part)}: {', '.join(drawn)}."
        case 6:  # Another thing than was asked for.
            return joined(draw_pieces(rng, pick(rng, all_requests())))
        case kind:
            return DAMAGES[kind - 1](rng, answer)


LISTS = LabTask(
    name="lists",
    templates=TEMPLATES,
    requests=all_requests,
    draw_pieces=draw_pieces,
    damage=damage,
    truth=truth_reward,
    truth_version=TRUTH_VERSION,
    check=rule_check("lists", truth_reward),
)
