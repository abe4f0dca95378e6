"""What a gate's name means in a run, and how many prompts it would need, before any is answered."""

from __future__ import annotations

import difflib
import posixpath
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from expo_ray.errors import ConfigError, argument
from expo_ray.rewards import RewardModelSpec
from expo_ray.selection.gates import MAIN, POWER
from expo_ray.selection.sample_size import (
    PUBLISHED_CORRELATION,
    PUBLISHED_SOURCE,
    UNKNOWN_ACCURACY,
    prompts_for_margin,
    variance_of_pairs,
)
from expo_ray.workflow.recipe import Recipe
from expo_ray.workflow.run_dir import reward_label

_CHECK = "check:"


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedGate:
    """A gate before the run."""

    name: str
    prompts: str
    margin: float
    num_prompts: int
    num_needed: int | None
    """None where nothing is known of the spread: scores that are not right or wrong."""

    def describe(self) -> str:
        """Return what one may hope for, in words."""
        text = f"gate {self.name}: {self.num_prompts:,} prompts, margin {self.margin:g}; "
        if self.num_needed is None:
            return (
                f"{text}how many tell depends on the spread of its scores: a pilot for "
                "`expo-ray plan-prompts` says it"
            )
        text += (
            f"about {self.num_needed:,} tell with {POWER:.0%} power that an equal model keeps it "
            f"(right or wrong, accuracy {UNKNOWN_ACCURACY:g} as the worst case, correlation "
            f"{PUBLISHED_CORRELATION:g}: {PUBLISHED_SOURCE})"
        )
        if self.num_prompts < self.num_needed:
            text += (
                "; so few may end in `cannot be told`, which keeps the aligned model; a pilot for "
                "`expo-ray plan-prompts` says more exactly"
            )
        return text


def gate_margins(recipe: Recipe, reward_models: Mapping[str, str]) -> dict[str, float]:
    """Return the margins by names of the run directory.

    Args:
        recipe: With gates by names of sets, or of reward models as they were asked for.
        reward_models: What was asked for, by folder name; the first scores.

    Raises:
        ConfigError: A name is neither a set of prompts nor a reward model besides the first, or may
            mean several of them; or a margin is as wide as the scores.
    """
    others = dict(list(reward_models.items())[1:])
    sets = recipe.prompts.sets
    if clash := sorted(sets.keys() & reward_models.keys()):
        raise ConfigError(
            "a set of prompts has the name of a reward model's folder",
            where=f"prompts.{clash[0]}",
            got=f"{clash[0]}, the folder of {reward_models[clash[0]]}",
            hint="give the set another name",
        )
    margins: dict[str, float] = {}
    for name, margin in recipe.selection.no_worse_than.items():
        key = _meant(name, sets, others)
        if key in margins:
            raise ConfigError(
                "two gates name the same thing",
                where=argument("no_worse_than"),
                got=f"{name} and another name of {others.get(key, key)}",
                expected="one margin for each",
            )
        text = sets[key].reward_models[0] if key in sets else others[key]
        widest = RewardModelSpec.parse(text).widest
        if widest is not None and margin >= widest:
            raise ConfigError(
                "a margin is as wide as the scores: nothing could be lost beyond it",
                where=argument("no_worse_than", f"{name}={margin:g}"),
                got=f"{margin:g}; two scores of {text} lie {widest:g} apart at most",
                expected=f"above 0 and below {widest:g}",
                hint="0.02 allows two answers in a hundred to be lost" if widest == 1 else None,
            )
        margins[key] = margin
    return margins


def reported_models(recipe: Recipe, reward_models: Mapping[str, str]) -> list[str]:
    """Return the folder names of the reward models that are only reported.

    Args:
        recipe: With their names, as gates have them.
        reward_models: As for `gate_margins`.

    Raises:
        ConfigError: A name is no reward model besides the first, may mean several, or is a gate.
    """
    others = dict(list(reward_models.items())[1:])
    found: list[str] = []
    margins = gate_margins(recipe, reward_models) if recipe.selection.report_only else {}
    for name in recipe.selection.report_only:
        key = _meant(name, (), others, setting="report_only")
        if key in margins or key in found:
            raise ConfigError(
                "a reward model that is only reported is named twice"
                if key in found
                else "a reward model cannot be a gate and only be reported",
                where=argument("report_only"),
                got=name,
                hint="leave it out once",
            )
        found.append(key)
    return found


def _meant(
    name: str,
    sets: Collection[str],
    others: Mapping[str, str],
    setting: str = "no_worse_than",
) -> str:
    """Return the set, or the folder of the reward model, that a name means and nothing else."""
    exact = [label for label, text in others.items() if name in (label, text)]
    # `rm` and `models/rm` name /data/models/rm, too.
    tail = f"/{posixpath.normpath(name)}"
    loose = [
        label
        for label, text in others.items()
        if name == label.partition("-")[2] or f"/{text}".endswith(tail)
    ]
    found: list[str] = [*([name] if name in sets else ()), *(exact or loose)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(
            "a gate's name may mean several things"
            if setting == "no_worse_than"
            else "the name of a reward model may mean several",
            where=argument(setting),
            got=name,
            expected=" or ".join(
                f"{key} ({others[key]})" if key in others else f"the set of prompts {key}"
                for key in found
            ),
            hint="a reward model has the name of its folder in the run, with its number, too"
            + ("; give the set another name" if name in sets else ""),
        )
    known = [*sets, *others.values(), *(label.partition("-")[2] for label in others)]
    close = difflib.get_close_matches(name, [*known, *others], n=1)
    raise ConfigError(
        "a gate names neither a set of prompts nor a reward model besides the first"
        if setting == "no_worse_than"
        else "no reward model besides the first has this name",
        where=argument(setting),
        got=name,
        expected=", ".join([*sets, *others.values()]) or "no other reward model is given",
        hint=f"did you mean {close[0]}?" if close else None,
    )


def plan_gates(
    recipe: Recipe, reward_models: Mapping[str, str], num_prompts: Mapping[str, int]
) -> list[PlannedGate]:
    """Return every gate with the number of its prompts, and of those that it would need.

    Args:
        recipe: With the margins.
        reward_models: As for `gate_margins`.
        num_prompts: Held-out prompts by set, `MAIN` among them.

    Raises:
        ConfigError: A gate names nothing.
    """
    planned = []
    for name, margin in gate_margins(recipe, reward_models).items():
        is_set = name in recipe.prompts.sets
        text = recipe.prompts.sets[name].reward_models[0] if is_set else reward_models[name]
        needed = None
        if text.startswith(_CHECK) and recipe.sampling.num_samples == 1:
            needed = prompts_for_margin(
                variance_of_pairs(UNKNOWN_ACCURACY, PUBLISHED_CORRELATION),
                margin,
                power=POWER,
                confidence=recipe.selection.confidence,
                proportions=True,
            )
        prompts = name if is_set else MAIN
        planned.append(
            PlannedGate(name=name, prompts=prompts, margin=margin,
                        num_prompts=num_prompts[prompts], num_needed=needed)
        )  # fmt: skip
    return planned


def labels_of(reward_models: tuple[str, ...]) -> dict[str, str]:
    """Return reward models as they were asked for, by their folder names."""
    return {reward_label(index, text): text for index, text in enumerate(reward_models)}
