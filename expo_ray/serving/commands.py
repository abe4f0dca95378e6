"""The commands of this room as functions: generate, score, serve."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from expo_ray.checkpoints.storages.local_output import require_local, require_writable_file
from expo_ray.cluster import LOCAL, ray_session, resolve_address
from expo_ray.credentials import read_api_key
from expo_ray.errors import ConfigError, ServingError, argument
from expo_ray.extrapolation.trajectories.fitted_change import FittedChange
from expo_ray.extrapolation.trajectories.trajectory_file import TrajectorySource
from expo_ray.lazy import imported_beside
from expo_ray.progress import Progress
from expo_ray.rewards import RewardModelSpec
from expo_ray.rewards.anchors import read_anchors
from expo_ray.rewards.checks.preflight import require_column
from expo_ray.rewards.sample_statistics import check_of, summarize_samples
from expo_ray.serving.alpha_setting import RulesLike, read_rules
from expo_ray.serving.engines.options import EngineOptions
from expo_ray.serving.engines.precision import describe_precision
from expo_ray.serving.engines.registry import pick_engine, resolve_engine
from expo_ray.serving.generator_replicas import GeneratorReplicas
from expo_ray.serving.launching import LOCALHOST, require_free_port
from expo_ray.serving.reward_replicas import RewardReplicas
from expo_ray.serving.reward_stream import count_rows
from expo_ray.serving.sampling import SamplingParams
from expo_ray.serving.served_model import ServedModel
from expo_ray.serving.source import ModelSource
from expo_ray.tables import read_prompts, read_table
from expo_ray.tables.streamed import iter_batches, parquet_files
from expo_ray.tables.thoughts import Reasoning

_DEFAULT_SAMPLING = SamplingParams()
_NO_OPTIONS = EngineOptions()
_SCHEMA_VERSION = 1


def generate(
    model: str | Path | None = None,
    *,
    prompts: str | Path,
    output: str | Path,
    initial: str | Path | None = None,
    alpha: float | None = None,
    alpha_rules: RulesLike | None = None,
    extra_tensors: Sequence[str] = (),
    trajectory: TrajectorySource | None = None,
    fit: str = "line",
    weights: Sequence[float] = (),
    columns: Mapping[str, str] | None = None,
    num_prompts: int | None = None,
    sampling: SamplingParams = _DEFAULT_SAMPLING,
    engine: str = "auto",
    options: EngineOptions = _NO_OPTIONS,
    reasoning: str = "auto",
    num_replicas: int = 1,
    address: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Answer every prompt of a file and write the responses table; a rerun continues.

    Args:
        model: A checkpoint; with `initial`, the aligned one.
        prompts: JSONL, JSON, Parquet or CSV: a file, `s3://`, `gs://`, or
            `hf://datasets/OWNER/NAME[@REVISION][/FILE][#split=NAME]`.
        output: Parquet file to write.
        initial: The checkpoint before alignment, for a live extrapolation.
        alpha: How far to extrapolate; beside rules, for tensors without a rule.
        alpha_rules: Alpha by part of the model: a YAML file as for `extrapolate`, or its table.
        extra_tensors: `copy:PATTERN`: tensors that one side may lack, as for `extrapolate`.
        trajectory: Instead of a pair, as for `extrapolate_trajectory`: alpha goes on from its last
            checkpoint along the fitted change.
        fit: Through the trajectory.
        weights: Of the fit `weights`.
        columns: The source's names of our columns (`{"prompt": "question"}`).
        num_prompts: Use so many prompts, drawn at random by the seed of the sampling.
        sampling: Sampling settings.
        engine: `auto`, `transformers` or `vllm`.
        options: Settings of the engine.
        reasoning: How thoughts are marked, which stand in a column of their own: `auto`, `off`,
            or a tag, see `expo_ray.tables.thoughts`.
        num_replicas: Replicas of the model.
        address: Ray cluster; None means `RAY_ADDRESS` where set, else a local Ray.
        progress: Where progress is shown.

    Returns:
        A summary with counts, tokens, seconds, weights digest.

    Raises:
        RequestError: A flag, the checkpoint, the pair or the prompts are wrong.
        ServingError: Replicas failed, or every response did.

    Example:
        >>> from expo_ray.serving import SamplingParams
        >>> made = expo_ray.generate(
        ...     "dpo",
        ...     initial="sft",
        ...     alpha=0.3,
        ...     prompts="p.jsonl",
        ...     output="answers.parquet",
        ...     sampling=SamplingParams(max_tokens=16),
        ... )
        >>> made["num_generated"], made["num_errors"]
        (12, 0)
    """
    # Checks what can be checked before a Ray is started; there auto may pick another engine.
    output = require_writable_file(output)
    along = None if trajectory is None else FittedChange.of(trajectory, fit, weights)
    source = model_source(model, initial, alpha, alpha_rules, extra_tensors, along).pinned()
    how: dict[str, Any] = {"options": options, "reasoning": Reasoning.parse(reasoning)}
    GeneratorReplicas(num_replicas, engine, **how)
    rows = read_prompts(prompts, columns=columns, num_prompts=num_prompts, seed=sampling.seed)
    if resolve_address(address) == LOCAL:
        resolve_engine(engine).check(source)
    with (
        imported_beside("torch"),  # the first weights are looked at once Ray is there
        ray_session(address, for_handles=True),
        GeneratorReplicas(num_replicas, engine, **how) as replicas,
    ):
        made = replicas.write_responses(source, rows, output, sampling=sampling, progress=progress)
    _require_some(made, output, "responses")
    return made


def score(
    responses: str | Path,
    *,
    reward_model: str,
    output: str | Path,
    engine: str = "transformers",
    initial: str | Path | None = None,
    aligned: str | Path | None = None,
    reference: str | Path | None = None,
    self_test: bool = True,
    anchors: str | Path | None = None,
    use_cache: bool = True,
    allow_truncation: bool = False,
    reasoning: str = "auto",
    num_replicas: int = 1,
    address: str | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score every response of a table; a rerun continues.

    Args:
        responses: A responses table, or a folder of them; large ones are streamed.
        reward_model: A checkpoint, `implicit:beta=0.1`, `judge:URL#model` or `check:KIND`.
        output: Parquet file to write.
        engine: `transformers`, or `vllm` for classifiers with one label.
        initial: For an implicit reward: the checkpoint before alignment.
        aligned: For an implicit reward: the aligned one.
        reference: For a pairwise reward model: the responses table that these are compared with.
        self_test: Whether the reward model tests itself before it scores.
        anchors: A preference file whose pairs the self-test must see rank right.
        use_cache: Whether scores are remembered on each node, and looked up there.
        allow_truncation: Whether chats that are too long lose their beginning and are marked.
        reasoning: How thoughts that the table does not tell apart are marked: `auto`, `off`, a tag.
        num_replicas: Replicas of the reward model.
        address: Ray cluster; None means `RAY_ADDRESS` where set, else a local Ray.
        progress: Where progress is shown.

    Returns:
        A summary with counts, mean reward, seconds.

    Raises:
        RequestError: A flag, a table or a checkpoint is wrong.
        ServingError: Replicas failed, or every reward did.

    Example:
        >>> made = expo_ray.score("responses.parquet", reward_model="rm", output="rewards.parquet")
        >>> made["num_scored"], made["num_errors"]
        (3, 0)
    """
    # A wrong reward model or table shows before a Ray is started.
    output = require_writable_file(output)
    replicas = RewardReplicas(
        reward_model,
        num_replicas,
        engine,
        initial=initial,
        aligned=aligned,
        self_test=self_test,
        anchors=None if anchors is None else read_anchors(anchors),
        use_cache=use_cache,
        allow_truncation=allow_truncation,
        reasoning=Reasoning.parse(reasoning),
    )
    for table in (responses, *(() if reference is None else (reference,))):
        count_rows(
            parquet_files(
                require_local(table, where=f"{argument('responses')}, {argument('reference')}")
            )
        )
    require_column(
        RewardModelSpec.parse(reward_model),
        [(file, pq.read_schema(file).names) for file in parquet_files(responses)],
    )
    with ray_session(address, for_handles=True), replicas:
        made = replicas.write_rewards(
            responses, output, references_path=reference, progress=progress
        )
    _require_some(made, output, "rewards")
    return {**made, "samples": _samples(responses, output)}


def _samples(responses: str | Path, rewards: Path) -> list[dict[str, Any]]:
    """Return what several samples of a prompt say, where a check judged those of one model."""
    scored = read_table(rewards)
    is_one = scored.num_rows and len(pc.unique(scored["weights_digest"])) == 1
    if not is_one or check_of(scored["reward_model"][0].as_py()) is None:
        return []
    columns = ["prompt_id", "sample", "weights_digest", "response"]
    batches = iter_batches(parquet_files(responses), columns)
    return summarize_samples(scored, pa.Table.from_batches(batches))


def _require_some(made: Mapping[str, Any], table: Path, rows: str) -> None:
    """Let work pass of which anything came out.

    Raises:
        ServingError: Every row of its table holds an error.
    """
    if not 0 < made["num_rows"] == made["num_errors"]:
        return
    first = next(iter_batches([table], ["prompt_id", "error"])).slice(0, 1).to_pylist()[0]
    raise ServingError(
        f"every one of the {rows} failed",
        where=table,
        got=f"{made['num_errors']} of {made['num_rows']}; prompt {first['prompt_id']}: "
        f"{first['error']}",
        hint="the table says why for each; once that is mended the same command tries them again",
    )


def serve(
    model: str | Path | None = None,
    *,
    initial: str | Path | None = None,
    alpha: float | None = None,
    alpha_rules: RulesLike | None = None,
    extra_tensors: Sequence[str] = (),
    trajectory: TrajectorySource | None = None,
    fit: str = "line",
    weights: Sequence[float] = (),
    reward_model: str | None = None,
    engine: str = "auto",
    options: EngineOptions = _NO_OPTIONS,
    num_replicas: int = 1,
    max_replicas: int | None = None,
    allow_alpha_change: bool = False,
    host: str = LOCALHOST,
    port: int = 8000,
    allowed_hosts: Sequence[str] = (),
    api_key_env: str | None = None,
    address: str | None = None,
    on_event: Callable[[dict[str, Any]], None] = lambda event: None,
) -> None:
    """Serve a model with the OpenAI API until a signal ends it.

    SIGINT leaves as KeyboardInterrupt; whoever turns SIGTERM into an exception (the command line
    does) gets the same clean end.

    Args:
        model: A checkpoint; with `initial`, the aligned one.
        initial: The checkpoint before alignment, for a live extrapolation.
        alpha: How far to extrapolate; beside rules, for tensors without a rule.
        alpha_rules: Alpha by part of the model: a YAML file as for `extrapolate`, or its table.
        extra_tensors: `copy:PATTERN`: tensors that one side may lack, as for `extrapolate`.
        trajectory: Instead of a pair, as for `extrapolate_trajectory`: alpha goes on from its last
            checkpoint along the fitted change.
        fit: Through the trajectory.
        weights: Of the fit `weights`.
        reward_model: Also serve this one at /v1/rewards.
        engine: `auto`, `transformers` or `vllm`.
        options: Settings of the engine.
        num_replicas: Replicas of the model.
        max_replicas: Let the autoscaler add replicas up to so many; None keeps the number.
        allow_alpha_change: Whether clients may change alpha while it runs.
        host: Address to listen on.
        port: Port to listen on.
        allowed_hosts: Further names by which clients may call a service without a key.
        api_key_env: Environment variable that holds the key clients must send.
        address: Ray cluster; None means `RAY_ADDRESS` where set, else a local Ray.
        on_event: Called with `{"schema_version", "event": "starting" | "ready" | "stopping", ...}`.

    Raises:
        RequestError: A flag, the checkpoint or the pair is wrong, or the port is in use.
        ServingError: Replicas failed.

    Example:
        Ask a service as soon as it is ready, then end it, as Ctrl-C in a terminal would:

        >>> import httpx
        >>> def ask(event):
        ...     if event["event"] == "ready":
        ...         listed = httpx.get(event["url"] + "/v1/models").json()
        ...         print([model["id"] for model in listed["data"]])
        ...         raise KeyboardInterrupt
        >>> try:
        ...     expo_ray.serve("dpo", initial="sft", alpha=0.3, port=8000, on_event=ask)
        ... except KeyboardInterrupt:
        ...     print("ended")
        ['dpo', 'dpo@alpha=0.3']
        ended
    """
    along = None if trajectory is None else FittedChange.of(trajectory, fit, weights)
    source = model_source(model, initial, alpha, alpha_rules, extra_tensors, along)
    settings: dict[str, Any] = {
        "num_replicas": num_replicas,
        "max_replicas": max_replicas,
        "options": options,
        "allow_alpha_change": allow_alpha_change,
        "reward_model": reward_model,
        "host": host,
        "port": port,
        "allowed_hosts": tuple(allowed_hosts),
        "route": "/",
        "api_key": read_api_key(api_key_env),
    }
    # Checks what can be checked before a Ray is started; there auto may pick another engine.
    ServedModel(source, engine=engine, **settings)
    if resolve_address(address) == LOCAL:
        require_free_port(host, port)
        resolve_engine(engine).check(source)

    def tell(event: str, **facts: object) -> None:
        on_event({"schema_version": _SCHEMA_VERSION, "event": event, **facts})

    with imported_beside("torch"), ray_session(address):
        picked, reason = pick_engine(engine)
        precision = describe_precision(picked, source, options) or None
        tell(
            "starting",
            model=source.name,
            engine=picked.name,
            engine_reason=reason,
            precision=precision,
        )
        with ServedModel(source, engine=picked.name, **settings) as served:
            try:
                tell(
                    "ready",
                    url=served.url,
                    model=served.model,
                    stable_model=source.stable_name,
                    engine=picked.name,
                    weights_digest=served.weights_digest,
                )
                while True:
                    time.sleep(3600)
            finally:
                tell("stopping")


def model_source(
    model: str | Path | None,
    initial: str | Path | None,
    alpha: float | None,
    alpha_rules: RulesLike | None,
    extra_tensors: Sequence[str] = (),
    along: FittedChange | None = None,
) -> ModelSource:
    """Return what a command was asked to serve; what does not fit together shows at once.

    Raises:
        RequestError: Only one of initial and alpha (or its rules) is given, it is malformed, or
            the rules or the pair do not fit; or models are given beside a trajectory.
    """
    if along is not None:
        if (model, initial) != (None, None):
            raise ConfigError(
                "a trajectory brings its models",
                where=f"{argument('trajectory')} beside MODEL, {argument('initial')}",
                got=" ".join(str(place) for place in (model, initial) if place is not None),
                expected=argument("trajectory"),
                hint=f"its last checkpoint is what {argument('alpha', 0)} serves",
            )
        model, initial = along.last, along.first
    if model is None:
        hint = f"give a model, or {argument('trajectory', 'FILE')}"
        raise ConfigError("an argument is missing", where="MODEL", hint=hint)
    source = ModelSource(
        model=str(model),
        initial=None if initial is None else str(initial),
        alpha=alpha,
        alpha_rules=None if alpha_rules is None else read_rules(alpha_rules),
        extra_tensors=tuple(extra_tensors),
        along=along,
    )
    source.check_pair()
    return source
