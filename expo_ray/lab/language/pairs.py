"""Preferences of known truth: of the initial model's own answers, the one that keeps to more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from expo_ray.lab.data import Pair
from expo_ray.lab.language.prompts import (
    CHECK,
    LanguagePrompt,
    Purpose,
    draw_prompts,
    random_source,
)
from expo_ray.lab.language.settings import LanguageSettings
from expo_ray.rewards.checks.constraints import CONSTRAINTS
from expo_ray.rewards.checks.kind import Check, Checked

TRAINING: tuple[Purpose, ...] = ("aligned", "reward_model", "guard_reward_model")


def open_check() -> Check:
    """Return the truth: the share of a prompt's constraints that a response keeps to."""
    return CONSTRAINTS.open(CONSTRAINTS.parse(CHECK.partition("=")[2]))


def training_prompts(settings: LanguageSettings, purpose: Purpose) -> dict[str, LanguagePrompt]:
    """Return the prompts of one training by their ids, of the largest share that is asked for."""
    num_prompts = settings.num_reward_prompts
    if purpose == "aligned":
        num_prompts = settings.num_prompts(max(settings.fractions))
    drawn = draw_prompts(settings, purpose, num_prompts)
    return {f"{purpose}-{i:05d}": prompt for i, prompt in enumerate(drawn)}


def make_pairs(
    settings: LanguageSettings,
    prompts: Mapping[str, LanguagePrompt],
    answers: Iterable[Mapping[str, Any]],
) -> list[Pair | None]:
    """Make one pair of the answers to each prompt.

    Args:
        settings: The seed, by which one of equal answers is taken.
        prompts: By their ids.
        answers: Rows of a responses table; those to other prompts are left out.

    Returns:
        In the order of the prompts: a best answer over a worst; None where all keep to as much.
    """
    check = open_check()
    texts: dict[str, set[str]] = {prompt_id: set() for prompt_id in prompts}
    for row in answers:
        if row["prompt_id"] in texts and row["response"]:
            texts[row["prompt_id"]].add(row["response"])
    return [_pair(settings, check, each, prompts[each], sorted(texts[each])) for each in prompts]


def _pair(
    settings: LanguageSettings,
    check: Check,
    prompt_id: str,
    prompt: LanguagePrompt,
    texts: Sequence[str],
) -> Pair | None:
    truths = [truth_of(check, prompt, text) for text in texts]
    if len(set(truths)) < 2:
        return None
    rng = random_source(settings, f"pair-{prompt_id}")
    order = [int(i) for i in rng.permutation(len(texts))]
    best, worst = max(order, key=truths.__getitem__), min(order, key=truths.__getitem__)
    return Pair(prompt=prompt.text, chosen=texts[best], rejected=texts[worst], agrees=True)


def truth_of(check: Check, prompt: LanguagePrompt, response: str) -> float:
    """Return the share of the prompt's constraints that a response keeps to."""
    messages = [{"role": "user", "content": prompt.text}]
    columns = {"constraints": prompt.constraints}
    return check.reward(Checked(messages=messages, response=response, columns=columns))
