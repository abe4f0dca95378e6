"""Recipes: what a run shall do, as strict YAML.

Every key is known and typed; an unknown one is refused with its dotted path and the nearest known
name. Paths resolve against the recipe file. WHAT is computed enters the digest of the run; HOW and
where (output folder, replicas) does not, so that a run may be continued on other hardware.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from expo_ray.errors import ConfigError
from expo_ray.extrapolation import parse_alpha
from expo_ray.extrapolation.plan import parse_size
from expo_ray.lab import LabSettings
from expo_ray.selection import SelectionSettings
from expo_ray.selection.adaptive import AdaptiveSettings
from expo_ray.serving import EngineOptions, SamplingParams
from expo_ray.yaml_text import parse_yaml

_STRICT = ConfigDict(extra="forbid", frozen=True)
PromptColumn = Literal[
    "prompt_id",
    "prompt",
    "instruction",
    "messages",
    "conversations",
    "input",
    "context",
    "system",
    "system_prompt",
    "history",
]


class PromptSettings(BaseModel):
    """Which prompts are answered."""

    model_config = _STRICT

    path: str | None = Field(
        None,
        description="JSONL, JSON, Parquet or CSV: a file, s3://, gs://, or a dataset on the Hub "
        "(hf://datasets/OWNER/NAME#split=SPLIT); the laboratory brings its own.",
    )
    columns: dict[PromptColumn, str] = Field(
        default_factory=dict, description="The source's names of our columns."
    )
    limit: int | None = Field(None, ge=2, description="Use the first N prompts only.")
    sample: int | None = Field(
        None, ge=2, description="Use N prompts drawn at random, the same whatever comes after."
    )
    seed: int | None = Field(
        None, ge=0, description="Seed of the draw; null takes that of the recipe."
    )
    heldout_fraction: float = Field(
        0.5, gt=0, lt=1, description="Share of the prompts kept apart to confirm the choice."
    )

    def reading(self, seed: int) -> dict[str, Any]:
        """Return the arguments of `read_prompts` beside the path."""
        return {
            "limit": self.limit,
            "columns": self.columns,
            "num_prompts": self.sample,
            "seed": seed if self.seed is None else self.seed,
        }


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
        # Alpha 0 is always a candidate and is the aligned model itself: nothing is written for it.
        try:
            rounded = sorted({parse_alpha(alpha) for alpha in alphas} - {0.0})
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


class ReplicaSettings(BaseModel):
    """How a model is served; does not change results, so it stays out of the digest."""

    model_config = _STRICT

    num_replicas: int = Field(1, ge=1, description="Replicas of each model that is served.")


class GeneratorSettings(ReplicaSettings):
    """How the model is served that answers, and its engine's settings."""

    engine: Literal["auto", "transformers", "vllm"] = Field(
        "auto", description="`auto` takes vllm where it is installed and there is a GPU."
    )
    max_model_len: int | None = Field(
        None, ge=1, description="Tokens of prompt and response; null takes the model's context."
    )
    tensor_parallel_size: int = Field(1, ge=1, description="Devices that share each layer (vllm).")
    engine_args: dict[str, Any] = Field(
        default_factory=dict,
        description="vLLM's own engine arguments, such as pipeline_parallel_size: 2.",
    )

    @model_validator(mode="after")
    def _arguments_have_an_engine(self) -> Self:
        if self.engine != "vllm" and (self.engine_args or self.tensor_parallel_size > 1):
            raise ValueError("engine_args and tensor_parallel_size need `engine: vllm`")
        return self

    @property
    def options(self) -> EngineOptions:
        """The settings as engines take them."""
        return EngineOptions(
            max_model_len=self.max_model_len,
            tensor_parallel_size=self.tensor_parallel_size,
            engine_args=self.engine_args,
        )


class RewarderSettings(ReplicaSettings):
    """How reward models are served."""

    self_test: bool = Field(
        True, description="Test each reward model before it scores; its spread bounds gains."
    )
    anchors: str | None = Field(
        None,
        description="Preference file whose pairs the self-test must see rank right, all of them; "
        "without it, general ones that are only counted.",
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
    reward_models: tuple[str, ...] = Field(
        (),
        description="The first scores, the others guard (path, implicit:beta=B, judge:URL#model).",
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

    @model_validator(mode="after")
    def _parts_are_tried_live(self) -> Self:
        if self.adaptive is not None and not self.extrapolation.live:
            raise ValueError(
                "adaptive tries its candidates inside the replicas, so extrapolation needs "
                "`keep: chosen`, `output_dtype: auto`, `vocab_policy: refuse`, no `extra_tensors`"
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

    def digest(self) -> str:
        """Return the sha256 of what this recipe computes, whatever hardware it runs on."""
        what = self.model_dump(
            mode="json", exclude={"output", "lab_cache", "generators", "rewarders", "name"}
        )
        # Directories of recipes from before these keys stay valid.
        del what["extrapolation"]["allow_unfit"]
        if self.adaptive is None:
            del what["adaptive"]
        if self.generators.max_model_len is not None:
            # The one setting of an engine that is meant to change answers: it cuts them off.
            what["max_model_len"] = self.generators.max_model_len
        if self.rewarders.allow_truncation:
            what["allow_truncation"] = True  # changes rewards
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def load_recipe(
    path: str | Path, overrides: Sequence[str] = (), *, in_job: bool | None = None
) -> Recipe:
    """Read a recipe file and apply `key=value` overrides.

    Args:
        path: YAML file.
        overrides: Dotted keys and YAML values: `extrapolation.alphas=[0.3,0.5]`.
        in_job: Whether it runs as a submitted job, where no relative output will do; None looks.

    Raises:
        ConfigError: The file is missing or malformed, a key is unknown or a value is out of range.
    """
    file = Path(path)
    try:
        document = parse_yaml(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "cannot read the recipe",
            where=file,
            got=getattr(error, "strerror", None) or error,
            hint="pipelines/recipes/ has examples",
        ) from error
    except ValueError as error:
        raise ConfigError("the recipe is not valid YAML", where=file, got=error) from error
    if not isinstance(document, dict):
        raise ConfigError(
            "a recipe is a mapping of keys to values",
            where=file,
            got=type(document).__name__,
            expected="mapping",
        )
    for override in overrides:
        _apply_override(document, override)
    try:
        recipe = validate_recipe(document, where=str(file))
    except ConfigError as error:
        # A wrong override is not the file's fault. It is blamed for its key and those below it.
        wrong = re.findall(r"`([^`]+)`", error.message)[:1]
        keys = {text: text.partition("=")[0].strip() for text in overrides}
        blamed = [t for t, key in keys.items() if f"{wrong[0]}.".startswith(f"{key}.")]
        error.where = f"--set {blamed[-1]}" if blamed else error.where
        raise
    if in_job is None:
        in_job = "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
    return _resolve_paths(recipe, file.resolve().parent, in_job=in_job)


def validate_recipe(document: Mapping[str, Any], *, where: str) -> Recipe:
    """Turn a plain mapping into a `Recipe`.

    Raises:
        ConfigError: Names the first wrong key by its dotted path, with a suggestion.
    """
    try:
        return Recipe.model_validate(document)
    except ValidationError as error:
        # Unknown keys first: a misspelt key often makes a required one look missing.
        details = sorted(error.errors(), key=lambda item: item["type"] != "extra_forbidden")
        first = details[0]
        key = ".".join(str(part) for part in first["loc"]) or "(recipe)"
        if first["type"] == "extra_forbidden":
            raise ConfigError(
                f"unknown recipe key `{key}`",
                where=where,
                got=key,
                hint=_suggest(first["loc"]),
            ) from error
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(
            f"recipe key `{key}`: {message}",
            where=where,
            got=None if isinstance(first["input"], dict) else repr(first["input"]),
        ) from error


def _suggest(location: tuple[int | str, ...]) -> str:
    fields = _known_fields(Recipe, location[:-1])
    prefix = ".".join(str(part) for part in (*location[:-1], ""))
    close = difflib.get_close_matches(str(location[-1]), fields, n=1)
    if close:
        return f"did you mean `{prefix}{close[0]}`?"
    return f"known keys: {', '.join(f'{prefix}{field}' for field in sorted(fields))}"


def _known_fields(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """Return the field names of the (possibly nested, possibly optional) model at `location`."""
    for part in location:
        annotation = model.model_fields[str(part)].annotation
        candidates = (annotation, *getattr(annotation, "__args__", ()))
        nested = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if not nested:
            return []
        model = nested[0]
    return list(model.model_fields)


def _apply_override(document: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise ConfigError(
            "an override is key=value", where="--set", got=override, hint="--set seed=7"
        )
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise ConfigError("the value is not valid YAML", where=f"--set {key}", got=text) from error
    *parents, last = key.strip().split(".")
    node = document
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise ConfigError(
                f"`{parent}` holds a value, not keys", where=f"--set {key}", got=repr(child)
            )
        node = child
    node[last] = value


def is_remote(path: str) -> bool:
    """Tell whether a location is a URI rather than a local path."""
    return "://" in path


def _resolve_paths(recipe: Recipe, folder: Path, *, in_job: bool) -> Recipe:
    """Make local paths absolute, against the folder of the recipe file."""
    if in_job and not is_remote(recipe.output) and not Path(recipe.output).is_absolute():
        raise ConfigError(
            "a relative output inside a submitted job lands on one node's scratch folder",
            where="output",
            got=recipe.output,
            expected="an absolute path that all nodes share, or a URI",
            hint="add --set output=/shared/path to the entry point",
        )

    def resolve(path: str | None) -> str | None:
        if path is None or is_remote(path) or ":" in path:
            return path
        expanded = Path(path).expanduser()
        local = expanded if expanded.is_absolute() else folder / expanded
        # A bare `owner/name` that is no folder here is a Hub id.
        if not local.exists() and path.count("/") == 1 and not path.startswith((".", "/", "~")):
            return path
        return os.path.normpath(local)

    output = recipe.output
    if not is_remote(output):
        output = os.path.normpath(folder / Path(output).expanduser())
    cache = recipe.lab_cache
    if cache is not None and in_job and not Path(cache).is_absolute():
        cache = None  # as for the output; the run directory is shared, and takes it
    if cache is not None:
        cache = os.path.normpath(folder / Path(cache).expanduser())
    return recipe.model_copy(
        update={
            "output": output,
            "lab_cache": cache,
            "initial": resolve(recipe.initial),
            "aligned": resolve(recipe.aligned),
            "reward_models": tuple(str(resolve(spec)) for spec in recipe.reward_models),
            "prompts": recipe.prompts.model_copy(update={"path": resolve(recipe.prompts.path)}),
            "rewarders": recipe.rewarders.model_copy(
                update={"anchors": resolve(recipe.rewarders.anchors)}
            ),
        }
    )
