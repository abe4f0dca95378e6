"""A whole run, top to bottom: models, extrapolation, responses, rewards, choice, report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from expo_ray.checkpoints.opening import absolute_address
from expo_ray.checkpoints.storages.local_output import require_writable_folder
from expo_ray.errors import ConfigError, ExpoError, argument, spelled
from expo_ray.extrapolation import parse_alpha
from expo_ray.extrapolation.planning.path import LAST
from expo_ray.extrapolation.trajectories.asked import parse_asked
from expo_ray.extrapolation.trajectories.fit_text import parse_fit
from expo_ray.extrapolation.trajectories.trajectory_file import read_trajectory
from expo_ray.progress import NullProgress, Progress
from expo_ray.reports.provenance import next_steps
from expo_ray.reports.run_files import RunFiles
from expo_ray.rewards.kinds.registry import kind_of
from expo_ray.selection.guard_settings import guard_of_field
from expo_ray.workflow import stages
from expo_ray.workflow.adaptive import search_parts
from expo_ray.workflow.inputs import check_request, prepare_models
from expo_ray.workflow.plan import plan_recipe
from expo_ray.workflow.prompt_sets import announce_gates
from expo_ray.workflow.recipe import Recipe
from expo_ray.workflow.recipe_file import RecipeError, load_recipe, validate_recipe
from expo_ray.workflow.run_dir import RunDir
from expo_ray.workflow.search import search_candidates
from expo_ray.workflow.setting_names import in_python, in_recipe
from expo_ray.workflow.speed import measure_throughput


@spelled(in_recipe)
def run(
    recipe: str | Path,
    *,
    overrides: Sequence[str] = (),
    address: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Execute a recipe file; a rerun continues where the last one stopped.

    Args:
        recipe: YAML file, see `expo-ray recipe new`.
        overrides: `key=value` pairs laid over the file.
        address: Ray cluster; None means `RAY_ADDRESS`, else a local Ray.
        progress: Where to report; None stays silent.

    Returns:
        `{"output", "report", "selection", "next"}`; `next` lists what to do now, with commands.

    Raises:
        ExpoError: Request errors before anything is written, work errors on the way.

    Example:
        >>> done = expo_ray.run("recipe.yaml", overrides=["output=run-by-recipe", "seed=7"])
        >>> done["selection"]["verdict"] in ("extrapolate", "keep-aligned")
        True
    """
    parsed = load_recipe(recipe, overrides)
    text = Path(recipe).read_text(encoding="utf-8")
    return run_recipe(parsed, recipe_text=text, address=address, progress=progress)


def run_recipe(
    recipe: Recipe, *, recipe_text: str, address: str | None, progress: Progress | None = None
) -> dict[str, Any]:
    """Execute a parsed recipe; see `run`."""
    directory = RunDir(recipe.output)
    with ExitStack() as stack:
        this = stages.Run(
            recipe=recipe,
            directory=directory,
            address=address,
            progress=progress or NullProgress(),
            stack=stack,
        )
        check_request(this)
        # Left last, after Ray.
        stack.enter_context(directory.claim(recipe_text=recipe_text, digest=recipe.digest()))
        prepare_models(this)
        unfit = stages.check_pair(this)
        selection = stages.keep_aligned(this, unfit) if unfit else _evaluate(this)
        report = stages.write_up(this, selection)
    return {
        "output": str(directory.path),
        "report": str(report),
        "selection": selection,
        "next": [asdict(step) for step in next_steps(RunFiles.read(directory.path, tables=False))],
    }


def _evaluate(this: stages.Run) -> dict[str, Any]:
    """Answer the prompts by every candidate, choose one, and keep its checkpoint."""
    announce_gates(this)
    if this.recipe.selection.strategy == "grid":
        stages.write_candidates(this)
        stages.generate_responses(this)
        stages.score_responses(this)
    else:
        search_candidates(this)
    selection = search_parts(this, stages.choose(this))
    this.kept.close()
    measure_throughput(this, selection)
    stages.keep_chosen(this, selection)
    return selection


def select(
    initial: str | None = None,
    aligned: str | None = None,
    *,
    prompts: str,
    output: str | Path,
    trajectory: str | Path | None = None,
    fit: str = "line",
    weights: Sequence[float] = (),
    at_step: Sequence[float] = (),
    reward_models: Sequence[str] = ("implicit:beta=0.1",),
    anchors: str | None = None,
    alphas: Sequence[float] | None = None,
    heldout_fraction: float = 0.5,
    keep: str = "chosen",
    strategy: str = "grid",
    max_alpha: float = 25.0,
    min_alpha: float = 0.0,
    sample_statistic: str = "avg",
    adaptive: int | None = None,
    extra_tensors: Sequence[str] = (),
    allow_unfit: bool = False,
    guards: Mapping[str, float | str | None] | None = None,
    no_worse_than: Mapping[str, float] | None = None,
    report_only: Sequence[str] = (),
    columns: Mapping[str, str] | None = None,
    num_prompts: int | None = None,
    settings: dict[str, Any] | None = None,
    dry_run: bool = False,
    tokens_per_second: float | None = None,
    address: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Choose alpha for a pair: extrapolate, answer the prompts, score, decide.

    This is a run without laboratory and load test; its directory can be resumed and reported.
    Unless all are kept, candidates are extrapolated inside the replicas and only the chosen one
    is written.

    Args:
        initial: theta0, the SFT checkpoint.
        aligned: theta1, the DPO or RLHF checkpoint.
        trajectory: Instead of both: a YAML list of `{step, checkpoint}`, or a folder of
            `checkpoint-100` and its like. Candidates are then written before they are served.
        fit: Through the trajectory, as for `extrapolate_trajectory`.
        weights: Of the fit `weights`.
        at_step: Candidate steps of the trajectory, in the place of alphas.
        prompts: JSONL, JSON, Parquet or CSV: a file, `s3://`, `gs://`, or
            `hf://datasets/OWNER/NAME[@REVISION][/FILE][#split=NAME]`.
        output: Run directory.
        reward_models: The first scores, the others guard.
        anchors: A preference file whose pairs every reward model that is no check must rank right.
        alphas: Candidates besides 0; None takes the paper's 0.1 to 0.5.
        heldout_fraction: Share of prompts that only confirm the choice.
        keep: `chosen` or `all` candidate checkpoints.
        strategy: `grid`, `expanding`, `bracketing`, or `racing`, alone or after a plus sign.
        max_alpha: How far expanding and bracketing may go.
        min_alpha: How far backwards where nothing gains.
        sample_statistic: What several samples of a prompt count for under the first reward model:
            `avg`, `pass@K` or `majority`; the last two need a check.
        adaptive: Then search an alpha for each part of the model in so many trials, from the
            chosen one; needs `expo-ray[adaptive]`.
        extra_tensors: `copy:PATTERN`: tensors that one side may lack, as for `extrapolate`;
            candidates are then written before they are served.
        allow_unfit: Evaluate a pair that `diagnose` calls unfit, such as unrelated models; else
            the verdict on it is keep-aligned, and nothing is generated.
        guards: Thresholds, by their names in `SelectionSettings`.
        no_worse_than: Gates: how much of the score of a reward model besides the first may be lost
            on held-out prompts, by its name (`{"check:number": 0.02}`). It is no guard then.
        report_only: Reward models besides the first that decide nothing: what they say is told.
        columns: The source's names of our columns (`{"prompt": "question"}`).
        num_prompts: Use so many prompts, drawn at random by the seed.
        settings: Further recipe keys (`sampling`, `generators`, `seed`, ...).
        dry_run: Return the plan instead, from headers alone; nothing is written.
        tokens_per_second: For the plan: what one replica generates.
        address: Ray cluster; None means `RAY_ADDRESS`, else a local Ray.
        progress: Where to report.

    Returns:
        `{"output", "report", "selection", "next"}`; `next` lists what to do now, with commands.
        Under `dry_run` the plan, see `plan_recipe`.

    Example:
        >>> done = expo_ray.select(
        ...     "sft",
        ...     "dpo",
        ...     prompts="p.jsonl",
        ...     reward_models=["rm", "implicit:beta=0.1"],
        ...     alphas=[0.3, 0.5],
        ...     settings={"sampling": {"max_tokens": 16}},
        ...     output="selected",
        ... )
        >>> done["selection"]["verdict"], done["selection"]["best_alpha"]
        ('keep-aligned', 0.0)
    """
    if trajectory is not None and at_step:
        steps = [float(point.step) for point in read_trajectory(trajectory)]
        named, _ = parse_fit(fit, weights)
        alphas = parse_asked(
            steps, named, start=LAST, alpha=alphas or (), at_step=at_step, rules=None
        ).alphas
    for alpha in alphas or ():
        parse_alpha(alpha)
    document: dict[str, Any] = {
        "name": "select",
        "output": str(require_writable_folder(output).absolute()),
        "initial": None if initial is None else absolute_address(initial),
        "aligned": None if aligned is None else absolute_address(aligned),
        "reward_models": [
            spec if kind_of(spec).prefix else absolute_address(spec) for spec in reward_models
        ],
        "prompts": {
            "path": absolute_address(prompts),
            "heldout_fraction": heldout_fraction,
            "columns": dict(columns or {}),
            "sample": num_prompts,
        },
        "extrapolation": {
            "keep": keep,
            "allow_unfit": allow_unfit,
            "extra_tensors": list(extra_tensors),
        },
        "selection": {
            "strategy": strategy,
            "max_alpha": max_alpha,
            "min_alpha": min_alpha,
            "sample_statistic": sample_statistic,
            **(guards or {}),
            "no_worse_than": dict(no_worse_than or {}),
            "report_only": list(report_only),
        },
        "loadtest": None,
        **(settings or {}),
    }
    if trajectory is not None:
        file = absolute_address(str(trajectory))
        document["trajectory"] = {"file": file, "fit": fit, "weights": list(weights)}
    if anchors is not None:
        document["rewarders"] = {
            **document.get("rewarders", {}),
            "anchors": absolute_address(anchors),
        }
    if alphas:
        document["extrapolation"]["alphas"] = list(alphas)
    if adaptive is not None:
        document["adaptive"] = {"num_trials": adaptive}
    try:
        recipe = validate_recipe(document, where="select")
    except RecipeError as error:
        raise _by_arguments(error) from error
    if dry_run:
        return plan_recipe(recipe, tokens_per_second=tokens_per_second)
    text = yaml.safe_dump(document, sort_keys=False)
    return run_recipe(recipe, recipe_text=text, address=address, progress=progress)


def _by_arguments(error: RecipeError) -> RecipeError:
    """Return an error about the arguments of `select`, whose user gave no keys of a recipe."""
    faults: dict[str, ExpoError] = {}
    for key, fault in error.faults.items():
        name = in_python(key)
        guard = guard_of_field(key.rpartition(".")[2])
        # Several values of one argument are several faults, and each guard has a name of its own.
        label = guard or (name if name and name not in faults else key)
        faults[label] = ConfigError(
            fault.message.removeprefix(f"recipe key `{key}`: "),
            where="select" if name is None else argument(name, guard),
            got=fault.got,
            hint=fault.hint,
        )
    wrong = RecipeError(faults, where="select")
    if len(faults) > 1:
        wrong.tell("message", f"{len(faults)} settings are wrong")
    return wrong
