"""The dry run: what a recipe would do, stage by stage, from headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from expo_ray.errors import spelled
from expo_ray.extrapolation.planning.alpha import ALIGNED_ALPHA
from expo_ray.lab import find_lab
from expo_ray.selection.explanations import warn_of_circle
from expo_ray.selection.gates import MAIN
from expo_ray.tables import read_prompts
from expo_ray.workflow.candidates import Inputs, extrapolate_candidates
from expo_ray.workflow.gate_names import labels_of, plan_gates, reported_models
from expo_ray.workflow.generation_time import GenerationRate, generation_rate
from expo_ray.workflow.inputs import check_settings, find_prompts
from expo_ray.workflow.pinning import pin_reward_models
from expo_ray.workflow.recipe import Recipe
from expo_ray.workflow.recipe_file import load_recipe
from expo_ray.workflow.setting_names import in_recipe
from expo_ray.workflow.tracking import describe_trackers


@spelled(in_recipe)
def plan_run(
    recipe: str | Path, overrides: Sequence[str] = (), *, tokens_per_second: float | None = None
) -> dict[str, Any]:
    """Return the plan of a recipe file, see `plan_recipe`."""
    return plan_recipe(load_recipe(recipe, overrides), tokens_per_second=tokens_per_second)


def plan_recipe(parsed: Recipe, *, tokens_per_second: float | None = None) -> dict[str, Any]:
    """Return the plan of a recipe: tasks, bytes in and out, memory, replicas and time per stage.

    Nothing is written and no Ray is started. Where a laboratory must be trained first, the sizes
    of the checkpoints are not known yet and the note says so.

    Args:
        parsed: The recipe.
        tokens_per_second: What one replica generates; None takes what earlier work in the output
            folder took, else an assumption, and says which.

    Raises:
        ConfigError: The recipe is wrong, or its output cannot be written.
        CheckpointError: An input checkpoint is wrong, or no reward model.
        PairError: The pair does not belong together.
        TableError: The prompts file is wrong.
    """
    check_settings(parsed)
    stages: list[dict[str, Any]] = []
    inputs = None if parsed.lab is not None else Inputs.of(parsed)
    prompts = parsed.prompts.path
    num_rewards = len(parsed.reward_models)
    num_prompts: int | None = None
    if parsed.lab is not None:
        lab = find_lab(parsed.lab_folder, parsed.lab)
        num_rewards += 1 + parsed.lab.guard_reward_model
        num_prompts = parsed.lab.num_eval_prompts
        stages.append(
            {
                "stage": "laboratory",
                "unit": "models",
                "tasks": 2 + num_rewards,
                "note": "train SFT, DPO and reward models" if lab is None else "cached",
            }
        )
        if lab is not None:
            inputs, prompts = Inputs((str(lab.initial), str(lab.aligned))), str(lab.prompts)
    if prompts is not None:
        num_prompts = len(find_prompts(parsed, prompts))
    elif num_prompts is not None:
        bounds = (parsed.prompts.limit, parsed.prompts.sample)
        num_prompts = min(n for n in (num_prompts, *bounds) if n is not None)
    extrapolation = _extrapolation_stage(parsed, inputs)
    if inputs is not None:
        for specs in (
            parsed.reward_models,
            *(s.reward_models for s in parsed.prompts.sets.values()),
        ):
            pin_reward_models(
                specs,
                inputs.addresses[0],
                inputs.addresses[-1],
                engine=parsed.rewarders.engine,
            )
    stages.append(
        {
            "stage": "diagnosis",
            "unit": "pair",
            "tasks": 1,
            "bytes_in": extrapolation.get("bytes_in"),
            "note": "is the pair fit? both models are read once",
        }
    )
    stages.append(extrapolation)
    rate = generation_rate(parsed, tokens_per_second)
    stages.extend(_inference_stages(parsed, num_prompts or 0, num_rewards, rate))
    stages.extend(_set_stages(parsed, rate))
    lab_models = num_rewards - len(parsed.reward_models)
    gates = _gates(parsed, num_prompts or 0, lab_models)
    return {
        "name": parsed.name,
        "output": parsed.output,
        "recipe_digest": parsed.digest(),
        "alphas": [ALIGNED_ALPHA, *parsed.extrapolation.alphas],
        "num_prompts": num_prompts,
        "stages": stages,
        "gates": gates,
        "warnings": _warnings(parsed),
    }


def _warnings(recipe: Recipe) -> list[str]:
    if recipe.lab is not None:
        return []
    named = labels_of(recipe.reward_models)
    reported = reported_models(recipe, named)
    return warn_of_circle([text for label, text in named.items() if label not in reported])


def _extrapolation_stage(recipe: Recipe, inputs: Inputs | None) -> dict[str, Any]:
    stage: dict[str, Any] = {
        "stage": "extrapolation",
        "unit": "shards",
        "num_alphas": len(recipe.extrapolation.alphas),
    }
    if inputs is None:
        return {**stage, "note": "sizes are known once the laboratory is trained"}
    alphas = recipe.extrapolation.alphas
    if recipe.is_live:
        alphas = alphas[:1]
        stage["note"] = "inside the replicas; the chosen one is written at the end"
    output = str(Path(recipe.output) / "checkpoints")
    plan = extrapolate_candidates(recipe, inputs, output, alphas, dry_run=True).as_dict()
    return {**stage, "tasks": plan["plan"]["num_shards"], **plan["plan"]}


def _set_stages(recipe: Recipe, rate: GenerationRate) -> list[dict[str, Any]]:
    """Return what further sets of prompts cost, once a candidate's gain is confirmed."""
    stages = []
    for name, settings in recipe.prompts.sets.items():
        num_prompts = len(read_prompts(settings.path, **settings.reading(recipe.seed)))
        num_responses = 2 * num_prompts * recipe.sampling.num_samples
        num_tokens = num_responses * recipe.sampling.max_tokens
        stages.append(
            {
                "stage": f"prompts {name}",
                "unit": "responses",
                "tasks": num_responses,
                "replicas": recipe.generators.num_replicas,
                "note": f"if a gain is confirmed: aligned and candidate, {settings.role}, scored "
                f"by {', '.join(settings.reward_models)}: {rate.describe(num_tokens)}",
                **rate.facts(num_tokens),
            }
        )
    return stages


def _gates(recipe: Recipe, num_prompts: int, num_lab_models: int) -> list[dict[str, Any]]:
    """Return what each gate has, and what it would need."""
    of_sets = {
        name: len(read_prompts(one.path, **one.reading(recipe.seed)))
        for name, one in recipe.prompts.sets.items()
    }
    # At least one prompt stays on each side.
    num_heldout = min(max(round(num_prompts * recipe.prompts.heldout_fraction), 1), num_prompts - 1)
    lab = ("reward-model", "guard-reward-model")[:num_lab_models]
    named = labels_of(lab + recipe.reward_models)
    planned = plan_gates(recipe, named, {MAIN: num_heldout, **of_sets})
    return [{**asdict(gate), "note": gate.describe()} for gate in planned]


def _inference_stages(
    recipe: Recipe, num_prompts: int, num_rewards: int, rate: GenerationRate
) -> list[dict[str, Any]]:
    strategy = recipe.selection.strategy
    adaptive = strategy not in ("grid", "racing")
    num_candidates = 1 + (
        recipe.selection.max_candidates if adaptive else len(recipe.extrapolation.alphas)
    )
    at_most = "" if strategy == "grid" else f"at most, by the strategy {strategy}: "
    num_responses = num_prompts * num_candidates * recipe.sampling.num_samples
    stages: list[dict[str, Any]] = [
        {
            "stage": "generation",
            "unit": "responses",
            "tasks": num_responses,
            "replicas": recipe.generators.num_replicas,
            "note": f"{at_most}{num_candidates} candidates, "
            f"up to {recipe.sampling.max_tokens} tokens each: "
            f"{rate.describe(num_responses * recipe.sampling.max_tokens)}",
            **rate.facts(num_responses * recipe.sampling.max_tokens),
        },
        {
            "stage": "scoring",
            "unit": "scores",
            "tasks": num_responses * num_rewards,
            "replicas": recipe.rewarders.num_replicas,
            "note": f"{num_rewards} reward models, one after the other",
        },
    ]
    if recipe.adaptive is not None:
        num_trials = recipe.adaptive.num_trials
        num_heldout = round(num_prompts * recipe.prompts.heldout_fraction)
        num_asked = (num_trials - 1) * (num_prompts - num_heldout) + num_heldout
        num_asked *= recipe.sampling.num_samples
        stages.append(
            {
                "stage": "alpha by part",
                "unit": "responses",
                "tasks": num_asked,
                "replicas": recipe.generators.num_replicas,
                "note": f"at most: {num_trials} trials, if an alpha is confirmed",
                **rate.facts(num_asked * recipe.sampling.max_tokens),
            }
        )
    if recipe.loadtest is not None:
        points = len(recipe.loadtest.concurrency)
        stages.append(
            {
                "stage": "load test",
                "unit": "requests",
                "tasks": 2 * points * recipe.loadtest.num_requests * recipe.loadtest.rounds,
                "replicas": recipe.loadtest.num_replicas,
                "note": f"aligned and candidate at {points} concurrencies",
            }
        )
    if recipe.track:
        stages.append(
            {
                "stage": "tracking",
                "unit": "trackers",
                "tasks": len(recipe.track),
                "note": describe_trackers(recipe.track),
            }
        )
    return stages
