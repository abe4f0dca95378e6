"""The stages of a run: each looks whether its result stands, and does only what is missing.

What a rerun skips, by what it finds in the run directory (another recipe, told by its digest, is
refused by `run_dir.RunDir.check`, and a pair of other bytes or headers by `inputs`):

    diagnosis       diagnosis.json
    checkpoints     each that is complete: its expo_ray.json
    responses       a candidate's whole table; of a half-written one the rows that it holds
    rewards         the same, per reward model
    load test       loadtest/compared.json (`speed`)
    laboratory      what its cache holds (`inputs`); trackers: what they were told (`tracking`)

The choice, a search over answers that are there, and the report are made again each time: they
cost seconds.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from expo_ray.checkpoints import Checkpoint, atomic_write_json
from expo_ray.cluster import ray_session
from expo_ray.errors import VerifyError
from expo_ray.extrapolation import diagnose
from expo_ray.extrapolation.planning.alpha import ALIGNED_ALPHA
from expo_ray.extrapolation.planning.alpha_rules import AlphaRules
from expo_ray.lab import write_truth
from expo_ray.progress import CombinedProgress, Progress
from expo_ray.reports import render_model_card, write_report
from expo_ray.reports.wording import headline
from expo_ray.rewards import RewardModelSpec, SelfTest
from expo_ray.rewards.anchors import AnchorPair
from expo_ray.selection import SelectionSettings, choose_alpha
from expo_ray.selection.gates import MeasureSets
from expo_ray.selection.measured_files import read_responses, read_rewards
from expo_ray.selection.search import SearchResult
from expo_ray.selection.unfit import explain_unfit, keep_unfit
from expo_ray.serving import GeneratorReplicas, ModelSource, RewardReplicas
from expo_ray.serving.alpha_setting import AlphaSetting
from expo_ray.serving.self_test_file import measured_spread
from expo_ray.tables import Prompt, assign_splits, read_table
from expo_ray.tables.seeds import Split
from expo_ray.tables.thoughts import Reasoning
from expo_ray.workflow.candidates import Inputs, extrapolate_candidates
from expo_ray.workflow.kept_replicas import KeptReplicas, fit_at_once, identity
from expo_ray.workflow.recipe import Recipe
from expo_ray.workflow.run_dir import TRUTH, RunDir, read_json
from expo_ray.workflow.serve_config import write_serve_config
from expo_ray.workflow.tracking import forget_failures, log_run


@dataclass(slots=True, kw_only=True)
class Run:
    """What the stages of one run share."""

    recipe: Recipe
    directory: RunDir
    address: str | None
    progress: Progress
    stack: ExitStack
    """Closed at the end of the run; holds the connection to Ray."""
    kept: KeptReplicas = field(default_factory=KeptReplicas)
    """Replicas that stay; further sets of prompts share them."""
    inputs: Inputs = field(default_factory=Inputs)
    """What candidates are made from, at addresses that mean the same later."""
    initial: str = ""
    """The first of them."""
    aligned: str = ""
    """The last of them."""
    pair_address: list[str] = field(default_factory=list)
    """All of them as they were asked for, before they were pinned."""
    sides: dict[str, Checkpoint] = field(default_factory=dict)
    """The headers of both, and of a trajectory's checkpoints between them."""
    reward_models: dict[str, RewardModelSpec] = field(default_factory=dict)
    anchors: list[AnchorPair] | None = None
    """Pairs that every reward model but checks must rank right before it scores."""
    self_tests: dict[str, SelfTest] = field(default_factory=dict)
    """What the reward models' tests of themselves found: one each, whatever is started anew."""
    prompts: list[Prompt] = field(default_factory=list)
    prompts_path: str = ""
    sets: dict[str, Run] = field(default_factory=dict)
    """Further sets of prompts, each as a run on the same models, by name."""
    margins: dict[str, float] = field(default_factory=dict)
    """What gates allow to be lost, by set of prompts or folder of a reward model."""
    report_only: list[str] = field(default_factory=list)
    """Folders of the reward models that decide nothing."""
    measure_sets: MeasureSets | None = None
    """Measures a candidate on the further sets; None without any."""
    is_held_out: bool = False
    """Whether no prompt chooses: those of a further set."""
    search: SearchResult | None = None
    """How candidates were found, under any strategy but the grid."""

    @property
    def alphas(self) -> tuple[float, ...]:
        """All candidates, `ALIGNED_ALPHA` among them."""
        if self.search is not None:
            return self.search.alphas
        return tuple(sorted({ALIGNED_ALPHA, *self.recipe.extrapolation.alphas}))

    @property
    def splits(self) -> dict[str, Split]:
        """Which prompts choose, and which confirm."""
        if self.is_held_out:
            return {prompt.prompt_id: "heldout" for prompt in self.prompts}
        return assign_splits(
            [prompt.prompt_id for prompt in self.prompts],
            heldout_fraction=self.recipe.prompts.heldout_fraction,
            seed=self.recipe.seed,
        )

    @property
    def selection(self) -> SelectionSettings:
        """The rules of the recipe, with reward models by their names in the run directory."""
        named = {"no_worse_than": self.margins, "report_only": self.report_only}
        return self.recipe.selection.model_copy(update=named)

    def source(self, alpha: AlphaSetting) -> ModelSource:
        """Return what is served for a candidate: a checkpoint, or the pair and its alpha."""
        if isinstance(alpha, AlphaRules):
            return ModelSource(model=self.aligned, initial=self.initial, alpha_rules=alpha)
        if alpha == ALIGNED_ALPHA:
            return ModelSource(model=self.aligned)
        if self.recipe.is_live:
            return ModelSource(model=self.aligned, initial=self.initial, alpha=alpha)
        return ModelSource(model=str(self.directory.checkpoint(alpha)))

    def generator_replicas(self) -> GeneratorReplicas:
        """Return replicas of whatever answers, not started yet."""
        settings = self.recipe.generators
        return GeneratorReplicas(
            settings.num_replicas,
            settings.engine,
            options=settings.options,
            reasoning=Reasoning.parse(self.recipe.reasoning),
        )

    def reward_replicas(self, label: str) -> RewardReplicas:
        """Return replicas of a reward model, not started yet."""
        settings = self.recipe.rewarders
        return RewardReplicas(
            self.reward_models[label],
            settings.num_replicas,
            settings.engine,
            initial=self.initial,
            aligned=self.aligned,
            self_test=settings.self_test,
            # What a check is for they do not say: `evaluate self-test` tries one on its own.
            anchors=None if self.reward_models[label].kind.reads_columns else self.anchors,
            use_cache=settings.cache,
            allow_truncation=settings.allow_truncation,
            reasoning=Reasoning.parse(self.recipe.reasoning),
            tests=self.self_tests,
        )

    def use_generators(self, *, keep: bool) -> AbstractContextManager[GeneratorReplicas]:
        """Give replicas of whatever answers: those that are kept, else new ones."""
        return self.kept.use("generators", self.generator_replicas, keep=keep)

    def use_rewarders(self, label: str, *, keep: bool) -> AbstractContextManager[RewardReplicas]:
        """Give replicas of a reward model: those that are kept, else new ones."""
        what = identity(self.reward_models[label])
        return self.kept.use(what, lambda: self.reward_replicas(label), keep=keep)

    @property
    def all_fit_with_sets(self) -> bool:
        """Whether the cluster holds all replicas at once, those for the further sets too."""
        runs = (self, *self.sets.values())
        return fit_at_once(self.recipe, (m for run in runs for m in run.reward_models.values()))

    def note_generation(self, made: Mapping[str, Any]) -> None:
        """Record what computed the answers, for whoever repeats the run or reads its report."""
        known = self.directory.read_resolved().get("generation", {})
        facts = {key: made[key] for key in ("engine", "precision") if made[key]}
        self.directory.update_resolved({"generation": {**known, **facts}})

    @contextmanager
    def responses_bar(self, description: str, alphas: Sequence[float]) -> Iterator[Progress]:
        """Show the work on several candidates as one line."""
        total = len(alphas) * len(self.prompts) * self.recipe.sampling.num_samples
        combined = CombinedProgress(self.progress, description, total=total, unit="responses")
        yield combined
        combined.close()

    def connect(self) -> None:
        """Connect to Ray; the connection ends with the run, after the replicas that are kept."""
        self.stack.enter_context(ray_session(self.address))
        self.stack.callback(self.kept.close)

    @contextmanager
    def stage(self, name: str, *, done: bool) -> Iterator[bool]:
        """Announce and time a stage; yields whether there is work to do."""
        if done:
            self.progress.message(f"{name}: already done")
            yield False
            return
        # A run that is finished already needs no Ray; stages with work share one.
        self.connect()
        self.progress.message(f"{name} ...")
        start = time.monotonic()
        yield True
        seconds = time.monotonic() - start
        self.directory.add_timing(name, seconds)
        self.progress.message(f"{name}: {seconds:.1f} s")


def check_pair(run: Run) -> Sequence[str]:
    """Read the pair once before hours are spent on it.

    Returns:
        Why it is not evaluated; nothing where it is fit, or the recipe allows any pair.

    Raises:
        WorkError: It holds values that are not finite.
    """
    with run.stage("diagnosis", done=run.directory.diagnosis_file.exists()) as todo:
        if todo:
            made = diagnose(
                run.initial,
                run.aligned,
                extra_tensors=run.recipe.extrapolation.extra_tensors,
                address=run.address,
                progress=run.progress,
            )
            if made.is_broken:
                made.require_fit()  # whatever is allowed: no stage reads such values
            for warning in made.warnings:
                run.progress.message(f"warning: {warning}")
            atomic_write_json(run.directory.diagnosis_file, made.as_dict())
    # Allowed once, its answers are not thrown away by a rerun that says nothing of it.
    if run.recipe.extrapolation.allow_unfit or run.directory.responses(ALIGNED_ALPHA).exists():
        return ()
    return _reasons_against(run)


def _reasons_against(run: Run) -> Sequence[str]:
    return list(read_json(run.directory.diagnosis_file).get("reasons", ()))


def keep_aligned(run: Run, reasons: Sequence[str]) -> dict[str, Any]:
    """Answer for an unfit pair, without any generation, and write `selection.json`."""
    selection = keep_unfit(reasons, run.selection)
    atomic_write_json(run.directory.selection_file, selection)
    return selection


def write_candidates(run: Run) -> None:
    """Extrapolate every candidate alpha in one read of the pair, unless replicas do it live."""
    if run.recipe.is_live:
        return
    # A finished sweep needs its checkpoints no more: those not kept may be gone by now.
    selection = read_json(run.directory.selection_file)
    swept = bool(selection) and not selection.get("unfit")
    if swept and run.recipe.extrapolation.keep == "chosen":
        return
    _extrapolate(run, run.recipe.extrapolation.alphas)


def write_missing_checkpoints(run: Run, alphas: Sequence[float]) -> None:
    """Write the checkpoints that candidates are served from, unless replicas compute them."""
    missing = [a for a in alphas if a and not run.directory.checkpoint(a).exists()]
    if missing and not run.recipe.is_live:
        _extrapolate(run, missing)


def _extrapolate(run: Run, alphas: Sequence[float]) -> None:
    done = all((run.directory.checkpoint(alpha) / "expo_ray.json").exists() for alpha in alphas)
    with run.stage("extrapolation", done=done) as todo:
        if not todo:
            return
        one = run.directory.checkpoint(alphas[0])
        extrapolate_candidates(
            run.recipe,
            run.inputs,
            str(run.directory.checkpoints if len(alphas) > 1 else one),
            alphas,
            address=run.address,
            progress=run.progress,
        )


def generate_responses(run: Run) -> None:
    """Answer the same prompts with the same seeds by every candidate, on the same replicas."""
    missing = [a for a in run.alphas if not run.directory.responses(a).exists()]
    with run.stage("generation", done=not missing) as todo:
        if not todo:
            return
        splits = run.splits
        with (
            run.use_generators(keep=_stay(run)) as replicas,
            run.responses_bar("Generating", missing) as progress,
        ):
            for alpha in missing:
                made = replicas.write_responses(
                    run.source(alpha),
                    run.prompts,
                    run.directory.responses(alpha),
                    sampling=run.recipe.sampling,
                    splits=splits,
                    alpha=alpha,
                    progress=progress,
                )
                run.note_generation(made)


def _stay(run: Run) -> bool:
    """Return whether replicas of a grid are kept: only further sets need them again."""
    return bool(run.sets) and run.all_fit_with_sets


def score_responses(run: Run) -> None:
    """Score every response by every reward model, and by the hidden truth in the laboratory."""
    for label in run.reward_models:
        missing = [a for a in run.alphas if not run.directory.rewards(label, a).exists()]
        with run.stage(f"scoring {label}", done=not missing) as todo:
            if not todo:
                continue
            with (
                run.use_rewarders(label, keep=_stay(run)) as replicas,
                run.responses_bar(f"Scoring with {label}", missing) as progress,
            ):
                for alpha in missing:
                    replicas.write_rewards(
                        run.directory.responses(alpha),
                        run.directory.rewards(label, alpha),
                        references_path=run.directory.responses(ALIGNED_ALPHA),
                        progress=progress,
                    )
    if run.recipe.lab is not None:
        for alpha in run.alphas:
            target = run.directory.rewards(TRUTH, alpha)
            if not target.exists():
                write_truth(run.directory.responses(alpha), target, task=run.recipe.lab.task)


def choose(run: Run) -> dict[str, Any]:
    """Choose alpha by the rewards and write `selection.json`."""
    selection = decide(run)
    reasons = _reasons_against(run)
    if reasons:
        selection["warnings"] = [explain_unfit(reasons), *selection["warnings"]]
    atomic_write_json(run.directory.selection_file, selection)
    return selection


def decide(run: Run) -> dict[str, Any]:
    """Choose alpha by the rewards so far."""
    labels = list(run.reward_models)
    rewards = {
        label: read_rewards(run.directory.rewards(label, a) for a in run.alphas) for label in labels
    }
    return choose_alpha(
        read_responses(run.directory.responses(a) for a in run.alphas),
        rewards[labels[0]],
        settings=run.selection,
        guard_rewards={label: rewards[label] for label in labels[1:]},
        measurement_spread=measured_spread(run.directory.rewards(labels[0], a) for a in run.alphas),
        search=run.search,
        signs_file=run.directory.signs_file,
        prompt_sets=run.measure_sets,
    )


def keep_chosen(run: Run, selection: Mapping[str, Any]) -> None:
    """Leave the chosen checkpoint alone on disk, unless all are kept.

    Raises:
        VerifyError: What was written is not what answered the prompts.
    """
    if run.recipe.extrapolation.keep == "all":
        return
    chosen = float(selection["best_alpha"])
    for alpha in run.alphas:
        if alpha != chosen:
            shutil.rmtree(run.directory.checkpoint(alpha), ignore_errors=True)
    if chosen == 0:
        return
    _extrapolate(run, [chosen])
    written = read_json(run.directory.checkpoint(chosen) / "expo_ray.json")["weights_digest"]
    answered = set(read_table(run.directory.responses(chosen))["weights_digest"].to_pylist())
    if answered != {written}:
        raise VerifyError(
            "the written checkpoint is not the model that answered the prompts",
            where=run.directory.checkpoint(chosen),
            got=written,
            expected=", ".join(sorted(answered)),
            hint="remove this run directory and start again",
        )


def write_up(run: Run, selection: Mapping[str, Any]) -> Path:
    """Write the report, the Serve configuration, the model card's evidence; tell the trackers."""
    chosen = run.directory.checkpoint(selection["best_alpha"])
    if selection["verdict"] == "extrapolate" and chosen.is_dir():
        render_model_card(chosen, selection)
    served = run.source(float(selection["best_alpha"]))
    if chosen.is_dir():
        served = ModelSource(model=str(chosen))
    write_serve_config(run.directory, served, run.recipe.generators, headline=headline(selection))
    forget_failures(run.directory)
    report = write_report(run.directory.path)
    if log_run(run.directory, run.recipe.track, run.progress):
        report = write_report(run.directory.path)
    return report
