"""Recipes: what a run shall do, as strict YAML.

Every key is known and typed, and says what it means; `recipe_file` reads the files. WHAT is
computed enters the digest of the run; HOW and where (output folder, replicas) does not, so that a
run may be continued on other hardware.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from expo_ray.errors import ConfigError
from expo_ray.extrapolation import parse_alpha
from expo_ray.extrapolation.planning.alpha import ALIGNED_ALPHA
from expo_ray.extrapolation.planning.plan import parse_size
from expo_ray.lab import LabSettings
from expo_ray.rewards.kinds.registry import reward_forms
from expo_ray.selection import SelectionSettings
from expo_ray.selection.adaptive import AdaptiveSettings
from expo_ray.serving import EngineOptions, SamplingParams
from expo_ray.serving.engines.registry import (
    auto_rule,
    engine_names,
    engines_with_args,
    reward_engine_help,
    reward_engine_names,
)
from expo_ray.tables.thoughts import REASONING_MEANS, Reasoning
from expo_ray.workflow.prompt_settings import PromptSettings
from expo_ray.workflow.trackers import TrackerName

_STRICT = ConfigDict(extra="forbid", frozen=True)
if TYPE_CHECKING:
    EngineName = str
    RewardEngineName = str
else:
    EngineName = Literal[tuple(engine_names())]
    RewardEngineName = Literal[tuple(reward_engine_names())]


class ExtrapolationSettings(BaseModel):
    """Which checkpoints are written."""

    model_config = _STRICT

    alphas: tuple[float, ...] = Field(
        (0.1, 0.2, 0.3, 0.4, 0.5),
        min_length=1,
        description="Candidates besides alpha 0 (paper section 3.1: 0.1 to 0.5 in steps of 0.1).",
    )
    output_dtype: Literal["auto", "bfloat16", "float16", "float32"] = Field(
        "auto", description="Dtype of the floating-point tensors; `auto` keeps each one's own."
    )
    max_shard_size: str = Field(
        "5GB", description="Largest safetensors file, with its unit: 500MB, 5GB, 4GiB."
    )
    vocab_policy: Literal["refuse", "common-rows", "copy-aligned"] = Field(
        "refuse",
        description="Where vocabularies differ: `refuse`; `common-rows` extrapolates the tokens "
        "that both have and copies the others from aligned; `copy-aligned` copies these tensors.",
    )
    extra_tensors: tuple[str, ...] = Field(
        (), description="`copy:PATTERN`: tensors that one side may lack, as for `extrapolate`."
    )
    keep: Literal["chosen", "all"] = Field(
        "chosen",
        description="`chosen`: candidates are extrapolated inside the replicas and only the chosen "
        "one is written; `all`: every candidate is written first and stays.",
    )

    allow_unfit: bool = Field(
        False,
        description="Evaluate a pair that `diagnose` calls unfit, such as unrelated models; else "
        "the verdict on it is keep-aligned, and nothing is generated.",
    )

    @property
    def live(self) -> bool:
        """Whether candidates are served without being written.

        Replicas compute each tensor in its own dtype and refuse differing vocabularies; for other
        settings the candidates are written first, so that what was measured is what is kept.
        """
        plain = self.output_dtype == "auto" and self.vocab_policy == "refuse"
        return self.keep == "chosen" and plain and not self.extra_tensors

    @field_validator("alphas")
    @classmethod
    def _finite_and_distinct(cls, alphas: tuple[float, ...]) -> tuple[float, ...]:
        try:
            rounded = sorted({parse_alpha(alpha) for alpha in alphas} - {ALIGNED_ALPHA})
        except ConfigError as error:
            raise ValueError(error.message) from error
        if not rounded:
            raise ValueError("at least one alpha other than 0 is needed")
        return tuple(rounded)

    @field_validator("max_shard_size")
    @classmethod
    def _is_a_size(cls, size: str) -> str:
        try:
            parse_size(size)
        except ConfigError as error:
            raise ValueError(f"{error.message}; {error.expected}") from error
        return size


class TrajectorySettings(BaseModel):
    """Many checkpoints of one training in the place of a pair."""

    model_config = _STRICT

    file: str = Field(
        description="YAML list of `{step, checkpoint}`, or a folder of `checkpoint-100`, ..."
    )
    fit: str = Field(
        "line",
        description="Fit whose change over the whole span is delta: line, rank1, wsm, ema, bema or "
        "weights, perhaps with options: `line:window=10`.",
    )
    weights: tuple[float, ...] = Field(
        (), description="Of the fit `weights`: one number for each checkpoint, with sum 1."
    )


class ReplicaSettings(BaseModel):
    """How a model is served; does not change results, so it stays out of the digest."""

    model_config = _STRICT

    num_replicas: int = Field(1, ge=1, description="Replicas of each model that is served.")


class GeneratorSettings(EngineOptions, ReplicaSettings):
    """How the model is served that answers, and its engine's settings."""

    engine: EngineName = Field("auto", description=auto_rule())

    @model_validator(mode="after")
    def _arguments_have_an_engine(self) -> Self:
        if self.has_engine_args and self.engine not in engines_with_args():
            names = " or ".join(f"`engine: {name}`" for name in engines_with_args())
            raise ValueError(f"engine_args and tensor_parallel_size need {names}")
        return self


class RewarderSettings(ReplicaSettings):
    """How reward models are served."""

    engine: RewardEngineName = Field("transformers", description=f"{reward_engine_help()}.")
    self_test: bool = Field(
        True, description="Test each reward model before it scores; its spread bounds gains."
    )
    anchors: str | None = Field(
        None,
        description="Preference file whose pairs the self-test must see rank right, all of them, "
        "by all reward models but checks; without it, general ones that are only counted.",
    )
    cache: bool = Field(True, description="Remember scores on each node, and look them up there.")
    allow_truncation: bool = Field(
        False,
        description="Leave out the beginning of chats that are longer than a reward model reads, "
        "and mark them; otherwise they get no reward.",
    )

    @model_validator(mode="after")
    def _anchors_are_for_the_self_test(self) -> Self:
        if self.anchors is not None and not self.self_test:
            raise ValueError("anchors are read by the self-test, which is switched off")
        return self


class LoadtestSettings(BaseModel):
    """Throughput test of the chosen model against the aligned one."""

    model_config = _STRICT

    concurrency: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1, 4, 16), min_length=1, description="Requests in flight, per point."
    )
    num_requests: int = Field(40, ge=1, description="Measured requests per point and round.")
    rounds: int = Field(
        3, ge=1, description="Turns of each model; they alternate, so that noise meets both."
    )
    max_tokens: int = Field(256, ge=1, description="Longest response.")
    num_replicas: int = Field(1, ge=1, description="Replicas that share the load.")


class Recipe(BaseModel):
    """One run: a pair (or a laboratory that trains one), prompts, candidates, judges."""

    model_config = _STRICT

    name: str = Field(
        min_length=1,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="Name of the run, the title of its report.",
    )
    output: str = Field(
        description="Run directory, on a disk that all nodes share; a rerun into it continues."
    )
    seed: int = Field(
        42,
        ge=0,
        description="Seed of which prompts are drawn and kept apart, of the search by part, and of "
        "the load test.",
    )
    lab: LabSettings | None = Field(
        None, description="Train the tiny laboratory and use its models and prompts."
    )
    lab_cache: str | None = Field(
        None,
        description="Where trained laboratories are kept; null takes `lab` in the output, and so "
        "does a relative path inside a submitted job.",
    )
    initial: str | None = Field(None, description="theta0, the SFT checkpoint.")
    aligned: str | None = Field(None, description="theta1, the DPO or RLHF checkpoint.")
    trajectory: TrajectorySettings | None = Field(
        None,
        description="Many checkpoints of one training, instead of initial and aligned: candidates "
        "lie along a fit through them, from the last one, and are written before they are served.",
    )
    reward_models: tuple[str, ...] = Field(
        (),
        description=f"The first scores, the others guard: {reward_forms()}.",
    )
    prompts: PromptSettings = Field(
        PromptSettings(), description="Where the prompts lie, and which of them are answered."
    )
    extrapolation: ExtrapolationSettings = Field(
        ExtrapolationSettings(), description="Which alphas are tried, and what is written."
    )
    sampling: SamplingParams = Field(
        SamplingParams(), description="How answers are sampled, the same for every alpha."
    )
    reasoning: str = Field("auto", description=REASONING_MEANS)
    generators: GeneratorSettings = Field(
        GeneratorSettings(), description="How the models are served that answer."
    )
    rewarders: RewarderSettings = Field(
        RewarderSettings(), description="How the reward models are served."
    )
    selection: SelectionSettings = Field(
        SelectionSettings(), description="Rules by which alpha is chosen, and its guards."
    )
    adaptive: AdaptiveSettings | None = Field(
        None, description="Search an alpha for each part of the model, from the chosen one."
    )
    loadtest: LoadtestSettings | None = Field(
        LoadtestSettings(),
        description="Throughput of the chosen model beside the aligned one; null goes without.",
    )
    track: tuple[TrackerName, ...] = Field(
        (),
        description="Experiment trackers that are told of the finished run; each needs its extra "
        "and finds its server in its own variables (MLFLOW_TRACKING_URI, WANDB_API_KEY).",
    )

    @field_validator("reasoning")
    @classmethod
    def _is_a_mark_of_thoughts(cls, text: str) -> str:
        try:
            return str(Reasoning.parse(text))
        except ConfigError as error:
            raise ValueError(f"{error.message}; expected {error.expected}") from error

    @model_validator(mode="after")
    def _gates_have_margins(self) -> Self:
        margins, sets = self.selection.no_worse_than, self.prompts.sets
        gates = [name for name, one in sets.items() if one.role == "gate"]
        without = [name for name in gates if name not in margins]
        if without:
            raise ValueError(
                f"a gate needs a margin: selection.no_worse_than: {{{without[0]}: 0.02}}"
            )
        reported = [name for name in sets if name in margins and name not in gates]
        if reported:
            raise ValueError(
                f"the set {reported[0]} has a margin in selection.no_worse_than and is only "
                "reported: give it `role: gate`"
            )
        return self

    @model_validator(mode="after")
    def _parts_pass_no_gate(self) -> Self:
        if self.adaptive is not None and self.selection.no_worse_than:
            raise ValueError("adaptive asks no gate: its rules could lose what no_worse_than keeps")
        return self

    @model_validator(mode="after")
    def _parts_are_tried_live(self) -> Self:
        if self.adaptive is not None and not self.is_live:
            raise ValueError(
                "adaptive tries its candidates inside the replicas, so it needs initial and "
                "aligned, and extrapolation with `keep: chosen`, `output_dtype: auto`, "
                "`vocab_policy: refuse`, no `extra_tensors`"
            )
        return self

    @model_validator(mode="after")
    def _models_from_one_place(self) -> Self:
        given = {
            "initial": self.initial,
            "aligned": self.aligned,
            "reward_models": self.reward_models,
            "prompts.path": self.prompts.path,
        }
        if self.trajectory is not None:
            beside = {"initial": self.initial, "aligned": self.aligned, "lab": self.lab}
            clash = [key for key, value in beside.items() if value]
            if clash:
                raise ValueError(f"trajectory brings its models; remove {', '.join(clash)}")
            if self.extrapolation.vocab_policy != "refuse":
                raise ValueError(
                    "the checkpoints of a trajectory have one vocabulary: `vocab_policy: refuse`"
                )
            del given["initial"], given["aligned"]
        if self.lab is not None:
            clash = [key for key in ("initial", "aligned", "prompts.path") if given[key]]
            if clash:
                raise ValueError(
                    f"lab brings its own models and prompts; remove {', '.join(clash)}"
                )
        else:
            missing = [key for key, value in given.items() if not value]
            if missing:
                raise ValueError(f"without lab these are needed: {', '.join(missing)}")
        return self

    @property
    def is_live(self) -> bool:
        """Whether candidates are served without being written.

        Those of a trajectory all come from one read of its checkpoints, which replicas would have
        to read again for each of them.
        """
        return self.extrapolation.live and self.trajectory is None

    @property
    def lab_folder(self) -> Path:
        """Where trained laboratories are kept."""
        return Path(self.lab_cache or Path(self.output) / "lab")

    def digest(self) -> str:
        """Return the sha256 of what this recipe computes, whatever hardware it runs on."""
        what = self.model_dump(
            mode="json",
            exclude={"output", "lab_cache", "generators", "rewarders", "name", "track"},
        )
        # Directories of recipes from before these keys stay valid.
        del what["extrapolation"]["allow_unfit"]
        for key in ("no_worse_than", "report_only"):
            if not what["selection"][key]:
                del what["selection"][key]
        for key in ("adaptive", "trajectory"):
            if what[key] is None:
                del what[key]
        if self.reasoning == "auto":
            del what["reasoning"]
        for unused in set() if self.lab is None else self.lab.unused:
            del what["lab"][unused]
        if self.generators.max_model_len is not None:
            # The one setting of an engine that is meant to change answers: it cuts them off.
            what["max_model_len"] = self.generators.max_model_len
        if self.rewarders.allow_truncation:
            what["allow_truncation"] = True  # changes rewards
        if self.rewarders.engine != RewarderSettings().engine:
            what["reward_engine"] = self.rewarders.engine  # rewards tables tell them apart, too
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
