"""What the laboratory trains on: answers of random quality, their flaws, and noisy preferences.

Everything is drawn from a NumPy generator that the caller seeds, so a seed gives the same data on
every machine. Requests are dealt to the purposes once: no prompt is shared between two of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np

from expo_ray.lab.settings import LabSettings
from expo_ray.lab.task import (
    CATEGORIES,
    POLITE_CLOSERS,
    POLITE_OPENERS,
    RUDE_CLOSERS,
    RUDE_OPENERS,
    TEMPLATES,
    Request,
    all_requests,
    heading,
    truth_reward,
)
from expo_ray.tables import Message

T = TypeVar("T")
Purpose = Literal["evaluation", "initial", "aligned", "reward_model", "guard_reward_model"]
# Of the requests that evaluation leaves, the share that each kind of training gets.
_SHARES: dict[Purpose, float] = {
    "initial": 0.4,
    "aligned": 0.2,
    "reward_model": 0.2,
    "guard_reward_model": 0.2,
}
VAGUE = "stuff"
# Slope of the labeller: a pair one point apart is labelled right with probability 0.92.
LABEL_SLOPE = 2.5
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two answers to one prompt and which of them the noisy labeller preferred."""

    prompt: str
    chosen: str
    rejected: str
    agrees: bool
    """Whether the label agrees with the truth."""

    def messages(self) -> list[Message]:
        """Return the conversation before the answer."""
        return [{"role": "user", "content": self.prompt}]


def random_source(settings: LabSettings, label: str) -> np.random.Generator:
    """Return the generator of one purpose, from the seed of the settings and a label."""
    return np.random.default_rng(settings.derive_seed(label))


def requests_for(settings: LabSettings, purpose: Purpose) -> list[Request]:
    """Return the requests that one purpose owns alone."""
    requests = all_requests()
    order = random_source(settings, "split").permutation(len(requests))
    dealt = [requests[i] for i in order]
    if purpose == "evaluation":
        return dealt[: settings.num_eval_prompts]
    rest = dealt[settings.num_eval_prompts :]
    names = list(_SHARES)
    before = sum(_SHARES[name] for name in names[: names.index(purpose)])
    end = before + _SHARES[purpose]
    return rest[round(before * len(rest)) : round(end * len(rest))]


def eval_prompts(settings: LabSettings) -> list[str]:
    """Return the held-out evaluation prompts, one per request, in templates drawn at random."""
    rng = random_source(settings, "evaluation")
    return [request.text(_pick(rng, TEMPLATES)) for request in requests_for(settings, "evaluation")]


def draw_example(rng: np.random.Generator, requests: Sequence[Request]) -> tuple[str, str]:
    """Draw a prompt and an answer of random quality (what the initial model learns from)."""
    request = _pick(rng, requests)
    return request.text(_pick(rng, TEMPLATES)), _join(_draw_pieces(rng, request))


def _draw_pieces(rng: np.random.Generator, request: Request) -> list[str]:
    """Draw opener, two lists and closer from one writer: careful, hasty or careless."""
    care = _pick(rng, CARE)
    pieces = [_draw_phrase(rng, POLITE_OPENERS, RUDE_OPENERS)]
    pieces += [_draw_list(rng, name, count, care) for name, count in request.parts]
    if rng.random() < care.forget:
        pieces[2] = ""
    return [*pieces, _draw_phrase(rng, POLITE_CLOSERS, RUDE_CLOSERS)]


def _draw_phrase(rng: np.random.Generator, polite: Sequence[str], rude: Sequence[str]) -> str:
    return _pick(rng, (*polite, *rude, ""))


def _join(pieces: Sequence[str]) -> str:
    return " ".join(piece for piece in pieces if piece)


def _draw_list(rng: np.random.Generator, category: str, count: int, care: Care) -> str:
    title = heading(category, count)
    if rng.random() < care.miscount:
        count += _pick(rng, (-1, 1))
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


def draw_pair(
    rng: np.random.Generator,
    requests: Sequence[Request],
    *,
    damaged_share: float = 0.0,
    near_share: float = 0.0,
) -> Pair:
    """Draw two answers of different truth to one prompt and label them with noise.

    Args:
        rng: Source of everything.
        requests: The requests of this purpose.
        damaged_share: Probability that one answer is a damaged one (run-on, word salad, cut
            short, ...): such text is never in the training data of the models, but extrapolated
            models write it, and a reward model that never saw it may like it.
        near_share: Probability that the answers differ in one piece only, which teaches what
            that piece is worth.

    Returns:
        The labelled pair.
    """
    while True:
        request = _pick(rng, requests)
        prompt = request.text(_pick(rng, TEMPLATES))
        pieces = _draw_pieces(rng, request)
        first, second = _join(pieces), _join(_draw_pieces(rng, request))
        kind = rng.random()
        if kind < damaged_share:
            second = _damage(rng, first if rng.random() < 0.5 else second, request)
        elif kind < damaged_share + near_share:
            index = int(rng.integers(4))
            pieces[index] = _draw_pieces(rng, request)[index]
            second = _join(pieces)
        pair = label_pair(rng, prompt, first, second)
        if pair is not None:
            return pair


def label_pair(rng: np.random.Generator, prompt: str, first: str, second: str) -> Pair | None:
    """Let the noisy labeller prefer one of two answers; None where their truth is equal."""
    messages: list[Message] = [{"role": "user", "content": prompt}]
    gap = truth_reward(messages, first) - truth_reward(messages, second)
    if gap == 0:
        return None
    prefers_first = rng.random() < 1 / (1 + math.exp(-LABEL_SLOPE * gap))
    return Pair(
        prompt=prompt,
        chosen=first if prefers_first else second,
        rejected=second if prefers_first else first,
        agrees=prefers_first == (gap > 0),
    )


def _damage(rng: np.random.Generator, answer: str, request: Request) -> str:
    """Break an answer in one of the ways that extrapolated models do."""
    return " ".join(_break(rng, answer, request).split()[:MAX_DAMAGED_WORDS])


def _break(rng: np.random.Generator, answer: str, request: Request) -> str:
    words = answer.split()
    match int(rng.integers(7)):
        case 0:  # A list that does not end.
            part = _pick(rng, request.parts)
            drawn = rng.choice(CATEGORIES[part[0]], size=int(rng.integers(6, 24)))
            return f"{answer} {heading(*part)}: {', '.join(drawn)}."
        case 1:  # Word salad.
            return " ".join(words[i] for i in rng.permutation(len(words)))
        case 2:  # Cut short.
            return " ".join(words[: int(rng.integers(len(words)))])
        case 3:  # Said again and again.
            return " ".join([answer] * int(rng.integers(2, 5)))
        case 4:  # Too many manners.
            phrases = [*POLITE_OPENERS, *POLITE_CLOSERS]
            chosen = [_pick(rng, phrases) for _ in range(int(rng.integers(1, 8)))]
            return " ".join([answer, *chosen] if rng.random() < 0.5 else [*chosen, answer])
        case 5:  # Words repeated in place.
            return " ".join(w for word in words for w in [word] * int(rng.choice((1, 1, 2, 3))))
        case _:  # Another thing than was asked for.
            return _join(_draw_pieces(rng, _pick(rng, all_requests())))


def _pick(rng: np.random.Generator, options: Sequence[T]) -> T:
    return options[int(rng.integers(len(options)))]
