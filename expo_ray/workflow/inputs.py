"""What a run works on: found and checked before its folder is touched, recorded when it is.

A request that is wrong shows here, from headers and prompts alone: nothing is written, no Ray is
started. Only the models of a laboratory are not there yet.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from expo_ray.checkpoints import atomic_write_json, open_checkpoint
from expo_ray.checkpoints.opening import open_aligned
from expo_ray.checkpoints.storages.local_output import require_writable_folder
from expo_ray.cluster import LOCAL, require_cluster, resolve_address
from expo_ray.errors import ConfigError
from expo_ray.extrapolation.outputs.assembly import read_attachments
from expo_ray.extrapolation.planning.plan import build_plan
from expo_ray.extras import require_extra
from expo_ray.lab import LabSettings, find_lab, prepare_lab
from expo_ray.rewards import RewardModelSpec, pin_reward_model
from expo_ray.rewards.anchors import read_anchors
from expo_ray.rewards.checks.preflight import require_checkable
from expo_ray.rewards.sample_statistics import require_statistic
from expo_ray.selection.explanations import warn_of_circle
from expo_ray.serving import GeneratorReplicas, ModelSource
from expo_ray.serving.engines.registry import resolve_engine
from expo_ray.tables import Prompt, assign_splits, read_prompts
from expo_ray.tables.prompt_files import pin_prompts
from expo_ray.versions import versions
from expo_ray.workflow.input_versions import refuse_other_versions, versions_of_inputs
from expo_ray.workflow.pinning import pin_reward_models
from expo_ray.workflow.prompt_sets import describe_sets, find_sets
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
    for spec in map(RewardModelSpec.parse, recipe.reward_models):
        if recipe.lab is not None and not spec.kind.needs_pair:
            pin_reward_model(spec, initial=None, aligned=None)


def needed_extras(recipe: Recipe) -> Iterator[tuple[str, str]]:
    """Yield the extras that a recipe needs, each with the key that asks for it."""
    if recipe.lab is not None and find_lab(recipe.lab_folder, recipe.lab) is None:
        yield "lab", "lab"
    if recipe.adaptive is not None:
        yield "adaptive", "adaptive"
    for name in recipe.track:
        yield name, "track"


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
    specs = [spec.text for spec in run.reward_models.values()]
    for warning in warn_of_circle(specs):
        run.progress.message(f"warning: {warning}")
    _record_inputs(run)


def _prepare_lab(run: Run, settings: LabSettings) -> None:
    with run.stage("laboratory", done=run.directory.lab_file.exists()):
        folder = run.recipe.lab_folder
        lab = prepare_lab(folder, settings, address=run.address, progress=run.progress)
        run.initial, run.aligned = str(lab.initial), str(lab.aligned)
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
        run.initial, run.aligned = str(recipe.initial), str(recipe.aligned)
        run.prompts_path = str(recipe.prompts.path)
    run.pair_address = [run.initial, run.aligned]
    if before.get("pair_address") == run.pair_address:
        run.initial, run.aligned = before["initial"]["uri"], before["aligned"]["uri"]
    initial = open_checkpoint(run.initial)
    aligned = open_aligned(run.aligned, initial)
    run.initial, run.aligned = initial.uri, aligned.uri
    run.sides = {"initial": initial, "aligned": aligned}
    settings = recipe.extrapolation
    plan = build_plan(
        initial,
        aligned,
        output_dtype=settings.output_dtype,
        max_shard_size=settings.max_shard_size,
        vocab_policy=settings.vocab_policy,
        extra_tensors=settings.extra_tensors,
    )
    read_attachments(plan)  # what could not be written at the end is refused now
    run.reward_models = pin_reward_models(
        rewards, run.initial, run.aligned, addresses=before.get("reward_addresses")
    )
    anchors = recipe.rewarders.anchors
    run.anchors = None if anchors is None else read_anchors(anchors)
    if before.get("prompts_address") == run.prompts_path:
        run.prompts_path = str(before["prompts"])
    run.prompts_path = pin_prompts(run.prompts_path)
    run.prompts = find_prompts(recipe, run.prompts_path)
    for spec in run.reward_models.values():
        require_checkable(spec, run.prompts, where=run.prompts_path)
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
    found = versions_of_inputs(run)
    refuse_other_versions(found, before.get("versions_of_inputs", {}))
    recipe, models = run.recipe, run.reward_models
    run.directory.update_resolved(
        {
            **inputs,
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
