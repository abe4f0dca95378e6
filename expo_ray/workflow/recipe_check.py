"""Checking a recipe: every key that is wrong, or what the run would do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from expo_ray.checkpoints import Checkpoint, open_checkpoint
from expo_ray.checkpoints.opening import open_aligned, open_storage
from expo_ray.checkpoints.storages.local_output import require_writable_folder
from expo_ray.errors import ExpoError, RequestError, spelled
from expo_ray.extrapolation.pairing.pair import refuse_same_checkpoint
from expo_ray.extras import require_extra
from expo_ray.rewards import RewardModelSpec
from expo_ray.rewards.checks.preflight import require_checkable
from expo_ray.rewards.sample_statistics import require_statistic
from expo_ray.serving import GeneratorReplicas
from expo_ray.tables import Prompt, read_prompts
from expo_ray.workflow.candidates import Inputs, extrapolate_candidates
from expo_ray.workflow.gate_names import gate_margins, labels_of, reported_models
from expo_ray.workflow.inputs import find_anchors, find_prompts, needed_extras
from expo_ray.workflow.pinning import check_reward_model
from expo_ray.workflow.plan import plan_recipe
from expo_ray.workflow.prompt_settings import PromptSet
from expo_ray.workflow.recipe import Recipe
from expo_ray.workflow.recipe_file import RecipeError, load_recipe
from expo_ray.workflow.run_dir import RunDir
from expo_ray.workflow.setting_names import in_recipe


@spelled(in_recipe)
def check_recipe(recipe: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Look at every key of a recipe and at what it names; nothing is written, no Ray is started.

    Args:
        recipe: YAML file.
        overrides: `key=value` pairs laid over the file.

    Returns:
        What the run would do, as `expo-ray run --dry-run` tells it.

    Raises:
        ConfigError: Names every wrong key; what it names may be missing or of no use. `faults` of
            this error has an error for each key.
        RequestError: The file cannot be read, or the pair does not belong together.

    Example:
        >>> plan = expo_ray.check_recipe("recipe.yaml", ["selection.strategy=racing"])
        >>> [stage["stage"] for stage in plan["stages"]]
        ['diagnosis', 'extrapolation', 'generation', 'scoring']
    """
    parsed = load_recipe(recipe, overrides)
    faults = _faults(parsed)
    if faults:
        raise RecipeError(faults, where=str(recipe))
    return plan_recipe(parsed)


def _faults(recipe: Recipe) -> dict[str, ExpoError]:
    """Return what is wrong outside of the recipe, by the key that names it."""
    faults: dict[str, ExpoError] = {}

    @contextmanager
    def blaming(key: str) -> Iterator[None]:
        try:
            yield
        except RequestError as error:
            error.tell("message", f"recipe key `{key}`: {error.told('message')}")
            faults[key] = error

    with blaming("output"):
        RunDir(require_writable_folder(recipe.output, where="output")).check(recipe.digest())
    with blaming("generators.engine"):
        settings = recipe.generators
        GeneratorReplicas(settings.num_replicas, settings.engine, options=settings.options)
    for extra, asking in needed_extras(recipe):
        with blaming(asking):
            require_extra(extra, where=asking)
    initial: Checkpoint | None = None
    with blaming("initial"):
        initial = None if recipe.initial is None else open_checkpoint(recipe.initial)
    with blaming("aligned"):
        if recipe.aligned is not None and initial is not None:
            refuse_same_checkpoint(initial, open_aligned(recipe.aligned, initial))
        elif recipe.aligned is not None:  # an adapter cannot be opened without its base
            open_storage(recipe.aligned)
    with blaming("trajectory"):
        if recipe.trajectory is not None:
            output = str(Path(recipe.output) / "checkpoints" / "planned")
            alphas = recipe.extrapolation.alphas
            extrapolate_candidates(recipe, Inputs.of(recipe), output, alphas, dry_run=True)
    for number, text in enumerate(recipe.reward_models):
        with blaming(f"reward_models.{number}"):
            check_reward_model(text, engine=recipe.rewarders.engine)
    with blaming("selection.sample_statistic"):
        if recipe.lab is None and "reward_models.0" not in faults:
            scoring = RewardModelSpec.parse(recipe.reward_models[0])
            require_statistic(
                recipe.selection.sample_statistic, scoring, recipe.sampling.num_samples
            )
    prompts: list[Prompt] = []
    path = recipe.prompts.path
    with blaming("prompts.path"):
        if path is not None:
            prompts = find_prompts(recipe, path)
    for number, text in enumerate(recipe.reward_models if prompts else ()):
        with blaming(f"reward_models.{number}"):
            if f"reward_models.{number}" not in faults:
                spec = RewardModelSpec.parse(text)
                require_checkable(spec, prompts, where=str(path), asks_services=False)
    for name, one in recipe.prompts.sets.items():
        _check_set(name, one, recipe, blaming)
    if recipe.lab is None:
        with blaming("selection.no_worse_than"):
            gate_margins(recipe, labels_of(recipe.reward_models))
        with blaming("selection.report_only"):
            if "selection.no_worse_than" not in faults:
                reported_models(recipe, labels_of(recipe.reward_models))
    with blaming("rewarders.anchors"):
        find_anchors(recipe)
    return faults


def _check_set(
    name: str,
    one: PromptSet,
    recipe: Recipe,
    blaming: Callable[[str], AbstractContextManager[None]],
) -> None:
    prompts: list[Prompt] = []
    with blaming(f"prompts.{name}.path"):
        prompts = read_prompts(one.path, **one.reading(recipe.seed))
    for number, text in enumerate(one.reward_models):
        with blaming(f"prompts.{name}.reward_models.{number}"):
            spec = check_reward_model(text, engine=recipe.rewarders.engine)
            if prompts:
                require_checkable(spec, prompts, where=one.path, asks_services=False)
