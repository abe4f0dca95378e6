"""What the laboratory trains on: answers of random quality, and noisy preferences.

Everything is drawn from a NumPy generator that the caller seeds, so a seed gives the same data on
every machine. Requests are dealt to the purposes once: no prompt is shared between two of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from expo_ray.lab.settings import LabSettings
from expo_ray.lab.tasks.drawing import joined, pick
from expo_ray.lab.tasks.interface import LabTask
from expo_ray.tables import Message

Purpose = Literal["evaluation", "initial", "aligned", "reward_model", "guard_reward_model"]
# Of the requests that evaluation leaves, the share that each kind of training gets.
_SHARES: dict[Purpose, float] = {
    "initial": 0.4,
    "aligned": 0.2,
    "reward_model": 0.2,
    "guard_reward_model": 0.2,
}
# Slope of the labeller: a pair one point apart is labelled right with probability 0.92.
LABEL_SLOPE = 2.5


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two answers to one prompt and which of them the noisy labeller preferred."""

    prompt: str
    chosen: str
    rejected: str
    agrees: bool
    """Whether the label is what the labeller would say without noise."""

    def messages(self) -> list[Message]:
        """Return the conversation before the answer."""
        return [{"role": "user", "content": self.prompt}]


def random_source(settings: LabSettings, label: str) -> np.random.Generator:
    """Return the generator of one purpose, from the seed of the settings and a label."""
    return np.random.default_rng(settings.derive_seed(label))


def requests_for(settings: LabSettings, purpose: Purpose) -> list[Any]:
    """Return the requests of the settings' task that one purpose owns alone."""
    requests = settings.lab_task.requests()
    order = random_source(settings, "split").permutation(len(requests))
    dealt = [requests[i] for i in order]
    if purpose == "evaluation":
        return dealt[: settings.num_eval_prompts]
    rest = dealt[settings.num_eval_prompts :]
    names = list(_SHARES)
    before = sum(_SHARES[name] for name in names[: names.index(purpose)])
    end = before + _SHARES[purpose]
    return rest[round(before * len(rest)) : round(end * len(rest))]


def draw_prompts(
    rng: np.random.Generator, task: LabTask, requests: Sequence[Any]
) -> list[dict[str, str]]:
    """Return a prompt per request, in templates drawn at random, with what it is checked against.

    Args:
        rng: Source of the templates.
        task: Of the requests.
        requests: What to ask for.

    Returns:
        `prompt`, and the columns that the task's answers are checked by.
    """
    return [
        {
            "prompt": request.text(pick(rng, task.templates)),
            **(task.columns(request) if task.columns else {}),
        }
        for request in requests
    ]


def eval_prompts(settings: LabSettings) -> list[dict[str, str]]:
    """Return the held-out evaluation prompts, one per request, see `draw_prompts`."""
    requests = requests_for(settings, "evaluation")
    return draw_prompts(random_source(settings, "evaluation"), settings.lab_task, requests)


def draw_example(
    settings: LabSettings, rng: np.random.Generator, requests: Sequence[Any]
) -> tuple[str, str]:
    """Draw a prompt and an answer of random quality (what the initial model learns from)."""
    task, request = settings.lab_task, pick(rng, requests)
    return request.text(pick(rng, task.templates)), joined(task.draw_pieces(rng, request))


def draw_pair(
    settings: LabSettings,
    rng: np.random.Generator,
    requests: Sequence[Any],
    *,
    damaged_share: float = 0.0,
    near_share: float = 0.0,
) -> Pair:
    """Draw two answers that the labeller likes differently to one prompt; label them with noise.

    Args:
        settings: Say which task, and what the labeller likes.
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
    task = settings.lab_task
    while True:
        request = pick(rng, requests)
        prompt = request.text(pick(rng, task.templates))
        pieces = task.draw_pieces(rng, request)
        first, second = joined(pieces), joined(task.draw_pieces(rng, request))
        kind = rng.random()
        if kind < damaged_share:
            second = task.damage(rng, first if rng.random() < 0.5 else second, request)
        elif kind < damaged_share + near_share:
            index = int(rng.integers(len(pieces)))
            pieces[index] = task.draw_pieces(rng, request)[index]
            second = joined(pieces)
        pair = label_pair(settings, rng, prompt, first, second)
        if pair is not None:
            return pair


def label_pair(
    settings: LabSettings, rng: np.random.Generator, prompt: str, first: str, second: str
) -> Pair | None:
    """Let the noisy labeller prefer one of two answers; None where he likes both the same."""
    gap = liking(settings, prompt, first) - liking(settings, prompt, second)
    if gap == 0:
        return None
    prefers_first = rng.random() < 1 / (1 + math.exp(-LABEL_SLOPE * gap))
    return Pair(
        prompt=prompt,
        chosen=first if prefers_first else second,
        rejected=second if prefers_first else first,
        agrees=prefers_first == (gap > 0),
    )


def liking(settings: LabSettings, prompt: str, response: str) -> float:
    """Return what a response is worth to the labeller: the truth, weighted, and its manners."""
    task = settings.lab_task
    truth = task.truth([{"role": "user", "content": prompt}], response)
    return settings.truth_weight * truth + (task.manners(response) if task.manners else 0.0)
