import asyncio
import pickle
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray

from expo_ray.checkpoints import open_checkpoint, weights_digest
from expo_ray.errors import CheckpointError, ConfigError, ServingError
from expo_ray.extrapolation import extrapolate
from expo_ray.extrapolation.planning.alpha_rules import AlphaRules
from expo_ray.progress import NullProgress
from expo_ray.rewards import RewardModelSpec, load_reward_model
from expo_ray.serving import (
    GeneratorReplicas,
    ModelSource,
    RewardReplicas,
    SamplingParams,
    ServedModel,
    generator_replicas,
)
from expo_ray.serving.chunked_calls import call_in_chunks
from expo_ray.serving.engines.options import EngineOptions, parse_engine_args
from expo_ray.serving.generator_replicas import _checked
from expo_ray.serving.loaded import Loaded
from expo_ray.serving.rewarder import Rewarder
from expo_ray.tables import (
    RESPONSES_SCHEMA,
    REWARDS_SCHEMA,
    Message,
    Prompt,
    read_table,
    row_seed,
)

SAMPLING = SamplingParams(max_tokens=12, num_samples=2, temperature=1.0)
PROMPTS = [
    Prompt(prompt_id=f"p{i}", messages=(Message(role="user", content="q" * i),))
    for i in range(1, 41)
]


class Watch(NullProgress):
    """Progress that calls back with every step."""

    def __init__(self, on_advance: Callable[[], None]) -> None:
        self._on_advance = on_advance

    def start(self, description: str, total: float | None = None, unit: str = "") -> "Watch":
        return self

    def advance(self, amount: float = 1) -> None:
        self._on_advance()

    def close(self) -> None:
        pass


def generated(
    replicas: GeneratorReplicas, source: ModelSource, path: Path, **more: object
) -> dict[str, object]:
    return replicas.write_responses(source, PROMPTS, path, sampling=SAMPLING, **more)


def test_candidates_on_the_same_replicas_then_rewards(
    ray_cluster: str,
    pico_pair: tuple[Path, Path],
    pico_reward_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    under_way = set()

    def noted(call: Callable[..., Any], chunks: Sequence[Any], *, num_in_flight: int) -> Any:
        under_way.add(num_in_flight)
        return call_in_chunks(call, chunks, num_in_flight=num_in_flight)

    monkeypatch.setattr(generator_replicas, "call_in_chunks", noted)
    initial, aligned = map(str, pico_pair)
    written = tmp_path / "alpha-0.5"
    extrapolate(initial, aligned, written, alpha=0.5, address="inline")
    splits = {prompt.prompt_id: "tuning" for prompt in PROMPTS}
    names = ("aligned", "written", "live", "ruled", "ruled-written")
    paths = {name: tmp_path / f"{name}.parquet" for name in names}
    rules = AlphaRules.parse([{"match": "*norm*", "alpha": 0}, {"match": "*", "alpha": 0.5}])
    ruled = tmp_path / "ruled"
    extrapolate(initial, aligned, ruled, alpha_rules=rules, address="inline")
    with GeneratorReplicas(num_replicas=2) as replicas:
        summary = generated(
            replicas, ModelSource(model=aligned), paths["aligned"], alpha=0.0, splits=splits
        )
        generated(replicas, ModelSource(model=str(written)), paths["written"], alpha=0.5)
        live = ModelSource(model=aligned, initial=initial, alpha=0.5)
        generated(replicas, live, paths["live"])
        # A search over parts of the model gives rules as data, on the same replicas.
        generated(replicas, live.at(rules), paths["ruled"])
        generated(replicas, ModelSource(model=str(ruled)), paths["ruled-written"])

    # Weights are loaded one after the other; two replicas compute a chunk each, and another waits.
    assert under_way == {1, 4}
    assert summary["num_generated"] == summary["num_rows"] == 80
    assert summary["num_errors"] == 0
    tables = {name: read_table(path, RESPONSES_SCHEMA) for name, path in paths.items()}
    rows = tables["aligned"].to_pylist()
    digest = weights_digest(open_checkpoint(aligned))
    assert {row["weights_digest"] for row in rows} == {digest}
    assert all(row["seed"] == row_seed(42, row["prompt_id"], row["sample"]) for row in rows)
    assert {row["split"] for row in rows} == {"tuning"}
    assert {row["alpha"] for row in rows} == {0.0}
    assert rows[0]["messages"] == [{"role": "user", "content": "q"}]
    assert all(0 < row["completion_tokens"] <= 12 for row in rows)
    # What is served live is what was written, to the last text.
    columns = ["prompt_id", "sample", "response", "weights_digest", "alpha", "seed"]
    assert tables["live"].select(columns).equals(tables["written"].select(columns))
    assert tables["live"].column("response") != tables["aligned"].column("response")
    assert tables["ruled"].select(columns).equals(tables["ruled-written"].select(columns))
    assert tables["ruled"].column("response") != tables["live"].column("response")
    assert set(tables["ruled"].column("alpha").to_pylist()) == {None}
    assert set(tables["ruled"].column("model").to_pylist()) == {f"aligned@rules={rules.digest}"}

    rewards_path = tmp_path / "rewards.parquet"
    with RewardReplicas(str(pico_reward_model), num_replicas=2) as rewarders:
        summary = rewarders.write_rewards(paths["aligned"], rewards_path)
        again = rewarders.write_rewards(paths["aligned"], rewards_path)
    assert (summary["num_scored"], summary["num_errors"]) == (80, 0)
    assert (again["num_scored"], again["num_resumed"]) == (0, 80)
    model = load_reward_model(str(pico_reward_model))
    for row, scored in zip(
        rows[:5], read_table(rewards_path, REWARDS_SCHEMA).to_pylist(), strict=False
    ):
        chat = [*row["messages"], Message(role="assistant", content=row["response"])]
        assert scored["reward"] == pytest.approx(model.score([chat])[0].reward, abs=1e-4)
        assert scored["reward_model_revision"] == model.revision
        assert [scored[k] for k in columns[:2]] == [row[k] for k in columns[:2]]


def test_a_killed_replica_and_a_killed_driver_change_nothing(
    ray_cluster: str, pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    source = ModelSource(model=str(pico_pair[1]))

    def kill_replicas() -> None:
        if not killed:
            for actor in ray.util.list_named_actors(all_namespaces=True):
                if actor["name"].startswith("SERVE_REPLICA::expo-ray-generator"):
                    killed.append(actor["name"])
                    ray.kill(ray.get_actor(**actor))

    class DriverDiesError(Exception):
        pass

    def die() -> None:
        raise DriverDiesError

    killed: list[str] = []
    with GeneratorReplicas() as replicas:
        whole = generated(replicas, source, tmp_path / "a.parquet", progress=Watch(kill_replicas))
        assert killed
        with pytest.raises(DriverDiesError):
            generated(replicas, source, tmp_path / "b.parquet", progress=Watch(die))
        resumed = generated(replicas, source, tmp_path / "b.parquet")
    assert (whole["num_generated"], whole["num_resumed"]) == (80, 0)
    assert (resumed["num_generated"], resumed["num_resumed"]) == (40, 40)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_answers_of_other_weights_are_not_recorded(
    ray_cluster: str, pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """The checkpoint is overwritten, and a replica that starts again meets the new one."""
    # Enough rows that some are not even sent when the first are answered.
    prompts = [replace(p, prompt_id=f"{p.prompt_id}-{i}") for p in PROMPTS for i in range(4)]
    model, output = tmp_path / "model", tmp_path / "a.parquet"
    shutil.copytree(pico_pair[1], model)
    source = ModelSource(model=str(model))
    digest = weights_digest(open_checkpoint(model))

    def overwrite_and_kill() -> None:
        shutil.copytree(pico_pair[0], model, dirs_exist_ok=True)
        for actor in ray.util.list_named_actors(all_namespaces=True):
            if actor["name"].startswith("SERVE_REPLICA::expo-ray-generator"):
                ray.kill(ray.get_actor(**actor))

    with GeneratorReplicas() as replicas:
        with pytest.raises(ServingError, match="other weights") as caught:
            replicas.write_responses(
                source, prompts, output, sampling=SAMPLING, progress=Watch(overwrite_and_kill)
            )
        assert weights_digest(open_checkpoint(model)) in str(caught.value.got)
        with pytest.raises(ConfigError, match="other weights"):
            replicas.write_responses(source, prompts, output, sampling=SAMPLING)
    recorded = pq.read_table(output.with_name(f"{output.name}.parts"))
    assert set(recorded["weights_digest"].to_pylist()) == {digest}


@pytest.mark.parametrize("changes", [{"model": "m@alpha=0.5"}, {"weights_digest": "other"}])
def test_a_replica_that_reports_something_else_is_refused(changes: dict[str, str]) -> None:
    source = ModelSource(model="m", initial="i", alpha=0.3)
    fine = Loaded(weights_digest="d", max_model_len=1, model="m@alpha=0.3")
    assert _checked(source, fine, "d") == _checked(source, fine, None) == "d"
    with pytest.raises(ServingError, match="other weights"):
        _checked(source, replace(fine, **changes), "d")


def test_done_work_starts_no_replica_and_wrong_work_is_refused(
    ray_cluster: str, pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    initial, aligned = (ModelSource(model=str(path)) for path in pico_pair)
    output = tmp_path / "a.parquet"
    long_prompt = Prompt(prompt_id="long", messages=(Message(role="user", content="x" * 300),))
    with GeneratorReplicas() as replicas:
        summary = replicas.write_responses(
            aligned, [*PROMPTS[:2], long_prompt], output, sampling=SAMPLING
        )
        with pytest.raises(ConfigError, match="other weights"):
            replicas.write_responses(initial, PROMPTS[:2], output, sampling=SAMPLING)
    assert summary["num_errors"] == 2
    row = read_table(output).to_pylist()[0]
    assert (row["prompt_id"], row["response"], row["finish_reason"]) == ("long", None, None)
    assert "256" in row["error"]

    with GeneratorReplicas() as replicas:
        again = replicas.write_responses(aligned, PROMPTS[:2], output, sampling=SAMPLING)
        assert replicas._handle is None, "nothing to do, nothing to start"
        assert again["num_generated"] == 0
        with pytest.raises(ConfigError, match="other settings"):
            replicas.write_responses(
                aligned, PROMPTS, output, sampling=SamplingParams(max_tokens=13)
            )
        with pytest.raises(CheckpointError, match="no such checkpoint"):
            generated(replicas, ModelSource(model=str(tmp_path / "none")), tmp_path / "b.parquet")
        assert replicas._handle is None


def test_a_reward_model_that_is_none_keeps_its_error(pico_pair: tuple[Path, Path]) -> None:
    scored = asyncio.run(Rewarder(RewardModelSpec.parse(str(pico_pair[1]))).score([]))
    assert isinstance(scored.error, CheckpointError)
    assert "one label" in pickle.loads(pickle.dumps(scored)).error.message


def test_replicas_are_sent_what_they_compute_at_once_and_one_chunk_more() -> None:
    assert GeneratorReplicas().chunks_in_flight == 2
    if find_spec("vllm") is not None:
        for engine_args, num_chunks in (
            ({}, 5),
            ({"max_num_seqs": 65}, 3),
            ({"max_num_seqs": 8}, 2),
        ):
            options = EngineOptions(engine_args=engine_args)
            assert GeneratorReplicas(1, "vllm", options=options).chunks_in_flight == num_chunks
        for wrong in (0, -1, "abc", None, [1]):
            with pytest.raises(ConfigError, match="refuses its settings"):
                GeneratorReplicas(
                    1, "vllm", options=EngineOptions(engine_args={"max_num_seqs": wrong})
                )


def test_requests_that_are_wrong_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown engine"):
        GeneratorReplicas(engine="tgi")
    with pytest.raises(ConfigError, match="no such settings"):
        GeneratorReplicas(options=EngineOptions(tensor_parallel_size=2))
    with pytest.raises(ConfigError, match="name=value"):
        parse_engine_args(["=3"])
    with pytest.raises(ConfigError, match="most replicas"):
        ServedModel(ModelSource(model="m"), num_replicas=3, max_replicas=2)
    with pytest.raises(ConfigError, match="pair"):
        RewardReplicas("implicit:beta=1", initial=tmp_path)
    with pytest.raises(ConfigError, match="both"):
        ModelSource(model="m", alpha=0.3)
    with pytest.raises(ConfigError, match="finite"):
        ModelSource(model="m", initial="i", alpha=float("nan"))
    assert ModelSource(model="org/dpo", initial="i", alpha=0.3).name == "dpo@alpha=0.3"
    assert not ModelSource(model="m", initial="i", alpha=0.0).is_live
