"""How each kind of model is made. Heavy: runs in a worker (`running.py`)."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from expo_ray.errors import EvaluationError
from expo_ray.lab import reinforcement, training
from expo_ray.lab.settings import LabSettings
from expo_ray.lab.steps import Facts, OnStep
from expo_ray.lab.studies.study import Model


def make_model(
    model: Model,
    lab: LabSettings,
    parents: Sequence[Path],
    output: Path,
    *,
    on_step: OnStep,
    mergekit: str,
) -> Facts:
    """Make one model and return the facts of its training.

    Args:
        model: How.
        lab: The laboratory of the seed.
        parents: Where its parents lie.
        output: Folder to write.
        on_step: Told of every optimizer step.
        mergekit: Command for merges.

    Raises:
        EvaluationError: mergekit failed.
    """
    settings = model.settings_in(lab)
    match model.kind:
        case "base":
            return training.train_initial(
                settings, output, on_step=on_step, variant=model.variant, as_text=True
            )
        case "sft":
            parent = parents[0] if parents else None
            return training.train_initial(
                settings, output, on_step=on_step, parent=parent, variant=model.variant
            )
        case "preference":
            return _align(model, settings, parents[0], output, on_step)
        case "grpo":
            grpo = reinforcement.GrpoSettings.model_validate(model.options)
            return reinforcement.train_reinforced(
                settings, parents[0], output, on_step=on_step, grpo=grpo
            )
        case "merge":
            return _merge(model, parents, output, mergekit, settings)


def _align(
    model: Model, settings: LabSettings, initial: Path, output: Path, on_step: OnStep
) -> Facts:
    options = dict(model.options)
    method = options.pop("method", "dpo")
    pairs = None
    if options.pop("longest_first", False):
        # As the paper biases its data: all pairs by how much longer the preferred answer is, of
        # which training sees the first ones, in that order.
        drawn = training.draw_preferences(settings, settings.num_preference_pairs)
        drawn.sort(key=lambda pair: len(pair.rejected.split()) - len(pair.chosen.split()))
        pairs = drawn[: settings.num_dpo_pairs]
        options["train_sampling_strategy"] = "sequential"
    return training.train_aligned(
        settings,
        initial,
        output,
        on_step=on_step,
        options=options,
        method=method,
        pairs=pairs,
        variant=model.variant,
    )


def _merge(
    model: Model, parents: Sequence[Path], output: Path, mergekit: str, settings: LabSettings
) -> Facts:
    """Merge all parents but the first, the common one, by a method of mergekit."""
    common, *merged = parents
    parameters = {"weight": 1.0, **model.options.get("parameters", {})}
    recipe: dict[str, Any] = {
        "merge_method": model.options["merge_method"],
        "models": [{"model": str(path), "parameters": parameters} for path in merged],
        # An average, in the size of one step, whatever the method.
        "parameters": {"normalize": True},
        "dtype": "float32",
    }
    if model.options["merge_method"] != "linear":
        recipe["base_model"] = str(common)
    seed = settings.derive_seed(f"merge{model.variant}")
    with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
        yaml.safe_dump(recipe, file)
        file.flush()
        command = [mergekit, file.name, str(output), "--random-seed", str(seed % 2**31)]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode:
        raise EvaluationError(
            "mergekit failed",
            where=mergekit,
            got=found.stderr.strip().splitlines()[-1:],
            hint="it needs an environment of its own, with the torch and transformers of this one",
        )
    return {"num_merged": len(merged), **training.measure_truth(settings, output)}
