"""What a run works on: found and checked before its folder is touched, recorded when it is.

A request that is wrong shows here, from headers and prompts alone: nothing is written, no Ray is
started. Only the models of a laboratory are not there yet.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from expo_ray.checkpoints import atomic_write_json
from expo_ray.checkpoints.storages.local_output import require_writable_folder
from expo_ray.cluster import LOCAL, require_cluster, resolve_address
from expo_ray.errors import ConfigError, argument
from expo_ray.extrapolation.planning.path import step_name
from expo_ray.extras import require_extra
from expo_ray.lab import LabSettings, find_lab, prepare_lab
from expo_ray.rewards.anchors import AnchorPair, read_anchors
from expo_ray.rewards.checks.preflight import require_checkable
from expo_ray.rewards.kinds.registry import kind_of
from expo_ray.rewards.sample_statistics import require_statistic
from expo_ray.selection.explanations import warn_of_circle
from expo_ray.serving import GeneratorReplicas, ModelSource
from expo_ray.serving.engines.registry import resolve_engine
from expo_ray.tables import Prompt, assign_splits, read_prompts
from expo_ray.tables.prompt_files import pin_prompts
from expo_ray.versions import versions
from expo_ray.workflow.candidates import Inputs, extrapolate_candidates
from expo_ray.workflow.input_versions import refuse_other_versions, versions_of_inputs
from expo_ray.workflow.pinning import check_reward_model, pin_reward_models
from expo_ray.workflow.prompt_sets import asks_services, describe_sets, find_sets
from expo_ray.workflow.recipe import Recipe
from expo_ray.workflow.run_dir import read_json
from expo_ray.workflow.stages import Run


def check_request(run: Run) -> None:
    """Refuse what can be known to be wrong before anything is written, and find the inputs.

    Raises:
        RequestError: Address, output, engine, pair, prompts or a reward model are wrong.
    """
    require_cluster(run.address)
    check_settings(run.recipe)
    for extra, key in needed_extras(run.recipe):
        require_extra(extra, where=key)
    if run.recipe.lab is not None:
        return
    _find_inputs(run, run.recipe.reward_models)
    if resolve_address(run.address) == LOCAL:
        engine = resolve_engine(run.recipe.generators.engine)
        engine.check(ModelSource(model=run.aligned))


def check_settings(recipe: Recipe) -> None:
    """Check the output, the engine and what a laboratory does not bring itself.

    Raises:
        RequestError: One of them is wrong.
    """
    require_writable_folder(recipe.output, where="output")
    settings = recipe.generators
    GeneratorReplicas(settings.num_replicas, settings.engine, options=settings.options)
    for text in recipe.reward_models if recipe.lab is not None else ():
        check_reward_model(text, engine=recipe.rewarders.engine)


def needed_extras(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield the extras that a recipe needs, each with the key that asks for it."""
    if recipe.lab is not None and find_lab(recipe.lab_folder, recipe.lab) is None:
        yield "lab", "lab"
    if recipe.adaptive is not None:
        yield "adaptive", "adaptive"
    for name in recipe.track:
        yield name, "track"


def find_anchors(recipe: Recipe) -> list[AnchorPair] | None:
    """Read the anchors, which every reward model that is no check must rank right.

    Raises:
        ConfigError: All reward models are checks, which would not read them.
        TableError: The file is missing or malformed.
    """
    path = recipe.rewarders.anchors
    if path is None:
        return None
    anchors = read_anchors(path)
    of_sets = (text for one in recipe.prompts.sets.values() for text in one.reward_models)
    asked = [*recipe.reward_models, *of_sets]
    # A laboratory brings reward models of its own.
    if recipe.lab is None and all(kind_of(text).reads_columns for text in asked):
        raise ConfigError(
            "anchors are for reward models that judge, and all of these are checks",
            where=argument("anchors", str(path)),
            got=", ".join(asked),
            hint="leave them out; expo-ray evaluate self-test tries a check of yours on them",
        )
    return anchors


def find_prompts(recipe: Recipe, path: str) -> list[Prompt]:
    """Return the prompts of a run.

    Raises:
        RequestError: They are missing or malformed, or too few to choose and to confirm.
    """
    prompts = read_prompts(path, **recipe.prompts.reading(recipe.seed))
    assign_splits(
        [prompt.prompt_id for prompt in prompts],
        heldout_fraction=recipe.prompts.heldout_fraction,
        seed=recipe.seed,
    )
    return prompts


def prepare_models(run: Run) -> None:
    """Record the pair, the reward models and the prompts; train a laboratory that is asked for.

    Raises:
        RequestError: An input is wrong, or not what it was when this run began.
    """
    if run.recipe.lab is not None:
        _prepare_lab(run, run.recipe.lab)
    elif not run.prompts:  # a check of the request has found them otherwise
        _find_inputs(run, run.recipe.reward_models)
    judges = [s.text for label, s in run.reward_models.items() if label not in run.report_only]
    for warning in warn_of_circle(judges):
        run.progress.message(f"warning: {warning}")
    _record_inputs(run)


def _prepare_lab(run: Run, settings: LabSettings) -> None:
    with run.stage("laboratory", done=run.directory.lab_file.exists()):
        folder = run.recipe.lab_folder
        lab = prepare_lab(folder, settings, address=run.address, progress=run.progress)
        run.inputs = Inputs((str(lab.initial), str(lab.aligned)))
        run.prompts_path = str(lab.prompts)
        guards = [] if lab.guard_reward_model is None else [str(lab.guard_reward_model)]
        _find_inputs(run, [str(lab.reward_model), *guards, *run.recipe.reward_models])
        atomic_write_json(run.directory.lab_file, read_json(lab.record))


def _find_inputs(run: Run, rewards: Iterable[str]) -> None:
    """Read headers, prompts and anchors; what a resumed run began with keeps its commits."""
    recipe, before = run.recipe, run.directory.read_resolved()
    if before.get("recipe_digest") != recipe.digest():
        before = {}
    if recipe.lab is None:
        run.inputs = Inputs.of(recipe)
        run.prompts_path = str(recipe.prompts.path)
    run.pair_address = list(run.inputs.addresses)
    if before.get("pair_address") == run.pair_address:
        pinned = tuple(before[name]["uri"] for name in run.inputs.names)
        run.inputs = replace(run.inputs, addresses=pinned)
    run.sides = run.inputs.open()
    pinned = tuple(side.uri for side in run.sides.values())
    run.inputs = replace(run.inputs, addresses=pinned)
    run.initial, *_, run.aligned = pinned
    # What could not be written at the end is refused now.
    extrapolate_candidates(
        recipe,
        run.inputs,
        str(run.directory.checkpoints / "planned"),
        recipe.extrapolation.alphas,
        dry_run=True,
    )
    run.reward_models = pin_reward_models(
        rewards,
        run.initial,
        run.aligned,
        engine=recipe.rewarders.engine,
        addresses=before.get("reward_addresses"),
    )
    run.anchors = find_anchors(recipe)
    if before.get("prompts_address") == run.prompts_path:
        run.prompts_path = str(before["prompts"])
    run.prompts_path = pin_prompts(run.prompts_path)
    run.prompts = find_prompts(recipe, run.prompts_path)
    asks = asks_services(run, before)
    for spec in run.reward_models.values():
        require_checkable(spec, run.prompts, where=run.prompts_path, asks_services=asks)
    scoring = next(iter(run.reward_models.values()))
    require_statistic(recipe.selection.sample_statistic, scoring, recipe.sampling.num_samples)
    find_sets(run, before)


def _record_inputs(run: Run) -> None:
    """Write what the run resolved to, or compare with what it resolved to before."""
    inputs = {name: {"uri": side.uri, "files": side.identity()} for name, side in run.sides.items()}
    before = run.directory.read_resolved()
    for name, now in inputs.items():
        if name in before and _digests(before[name]) != _digests(now):
            raise ConfigError(
                f"the {name} checkpoint has changed since this run began",
                where=now["uri"],
                hint="start again in another output folder",
            )
    steps = list(run.inputs.steps)
    if before.get("steps", steps) != steps:
        raise ConfigError(
            "the steps of the trajectory have changed since this run began",
            where=argument("trajectory"),
            got=", ".join(map(step_name, steps)),
            expected=", ".join(map(step_name, before["steps"])),
            hint="start again in another output folder",
        )
    found = versions_of_inputs(run)
    refuse_other_versions(found, before.get("versions_of_inputs", {}))
    recipe, models = run.recipe, run.reward_models
    run.directory.update_resolved(
        {
            **inputs,
            **({"steps": steps} if steps else {}),
            "pair_address": run.pair_address,
            "recipe": recipe.model_dump(mode="json"),
            "alphas": list(run.alphas),
            "num_prompts": len(run.prompts),
            "prompts": run.prompts_path,
            "prompts_address": recipe.prompts.path,
            "reward_models": {label: spec.text for label, spec in models.items()},
            "reward_addresses": {spec.text: spec.model for spec in models.values()},
            "prompt_sets": describe_sets(run),
            "generators": recipe.generators.model_dump(mode="json"),
            "engine": recipe.generators.engine,
            "sampling": recipe.sampling.model_dump(mode="json"),
            "seed": recipe.seed,
            "versions_of_inputs": found,
            "versions": versions(),
            "hardware": {"machine": platform.machine(), "num_cpus": os.cpu_count()},
        }
    )


def _digests(identity: Mapping[str, Any]) -> list[tuple[object, object]]:
    return [(file["bytes"], file["header_sha256"]) for file in identity["files"]]
