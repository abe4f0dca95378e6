"""Reward replicas: self-test, cache, references, and tables that are streamed."""

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from expo_ray.errors import ConfigError, EvaluationError
from expo_ray.rewards import load_reward_model
from expo_ray.serving import RewardReplicas, reward_job
from expo_ray.serving.reward_rows import chat_of
from expo_ray.serving.self_test_file import measured_spread, self_test_file
from expo_ray.tables import RESPONSES_SCHEMA, read_table
from tests.rewards.own_heads import save_pairwise


def response_rows(
    count: int, *, alpha: float = 0.0, text: str = "word "
) -> list[dict[str, object]]:
    return [
        {
            "prompt_id": f"p{i}",
            "sample": 0,
            "split": "tuning",
            "messages": [{"role": "user", "content": f"question {i}"}],
            "response": text * (i % 7 + 1),
            "model": "m",
            "alpha": alpha,
            "weights_digest": f"d{alpha:g}",
            "seed": i,
            "finish_reason": "stop",
            "prompt_tokens": 3,
            "completion_tokens": 4,
            "error": None,
        }
        for i in range(count)
    ]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=RESPONSES_SCHEMA), path)
    return path


def test_self_test_and_cache_around_a_table(
    ray_cluster: str, pico_reward_model: Path, tmp_path: Path
) -> None:
    responses = write(tmp_path / "responses.parquet", response_rows(30, text="cached "))
    first, second = tmp_path / "first.parquet", tmp_path / "second.parquet"
    with RewardReplicas(str(pico_reward_model)) as replicas:
        one = replicas.write_rewards(responses, first)
        two = replicas.write_rewards(responses, second)
    assert (one["num_scored"], one["num_cached"]) == (30, 0)
    assert (two["num_scored"], two["num_cached"]) == (30, 30)
    assert read_table(first).equals(read_table(second)), "to the bit"
    side = json.loads(self_test_file(first).read_text())
    assert side["spread"] == one["spread"] == measured_spread([first, second]) < 1e-4
    assert side["num_chats"] >= 16
    assert measured_spread([tmp_path / "untested.parquet"]) is None

    untested = tmp_path / "untested.parquet"
    other = shutil.copytree(pico_reward_model, tmp_path / "other")
    template = other / "chat_template.jinja"
    template.write_text(template.read_text() + "!")
    long = write(tmp_path / "long.parquet", response_rows(2, text="quite long " * 20))
    with RewardReplicas(
        str(other), self_test=False, use_cache=False, allow_truncation=True
    ) as replicas:
        three = replicas.write_rewards(responses, untested)
        cut = replicas.write_rewards(long, tmp_path / "cut.parquet")
        with pytest.raises(ConfigError, match="other settings"):
            replicas.write_rewards(responses, first)
    assert three["reward_model_revision"] == one["reward_model_revision"]
    assert (three["num_truncated"], cut["num_truncated"], cut["num_errors"]) == (0, 1, 0)
    assert read_table(tmp_path / "cut.parquet")["truncated"].to_pylist() == [False, True]
    assert (three["num_cached"], three["spread"]) == (0, None)
    assert not self_test_file(untested).exists()


def test_anchors_that_rank_wrong_stop_the_work(
    ray_cluster: str, pico_reward_model: Path, tmp_path: Path
) -> None:
    from expo_ray.rewards.anchors import default_anchors

    responses = write(tmp_path / "responses.parquet", response_rows(3))
    anchors = default_anchors()
    with (
        RewardReplicas(str(pico_reward_model), anchors=anchors) as replicas,
        pytest.raises(EvaluationError, match="anchors wrong"),
    ):
        replicas.write_rewards(responses, tmp_path / "rewards.parquet")
    assert not (tmp_path / "rewards.parquet").exists()


def test_a_pairwise_model_needs_references(ray_cluster: str, tmp_path: Path) -> None:
    folder, _ = save_pairwise(tmp_path / "rm")
    rows = response_rows(6, alpha=0.3)
    responses = write(tmp_path / "responses.parquet", rows)
    aligned_rows = response_rows(5, text="other ")
    references = write(tmp_path / "aligned.parquet", aligned_rows)
    output = tmp_path / "rewards.parquet"
    with RewardReplicas(str(folder)) as replicas:
        with pytest.raises(ConfigError, match="compares"):
            replicas.write_rewards(responses, output)
        summary = replicas.write_rewards(responses, output, references_path=references)
        own = replicas.write_rewards(
            references, tmp_path / "zero.parquet", references_path=references
        )
        with pytest.raises(ConfigError, match="other settings"):
            replicas.write_rewards(responses, output, references_path=responses)
    assert (summary["num_errors"], summary["num_truncated"]) == (1, 0), (
        "the sixth prompt has no reference"
    )
    model = load_reward_model(str(folder))
    expected = model.score(
        [chat_of(row) for row in rows[:5]], [str(row["response"]) for row in aligned_rows]
    )
    found = read_table(output).to_pylist()
    assert [row["reward"] for row in found[:5]] == pytest.approx(
        [score.reward for score in expected], abs=1e-4
    )
    assert "compare" in found[5]["error"]
    assert own["mean_reward"] == 0.0


def test_a_folder_is_streamed_and_continues_by_row(
    ray_cluster: str, pico_reward_model: Path, tmp_path: Path
) -> None:
    rows = response_rows(120, text="streamed ")
    rows[5]["error"], rows[5]["response"] = "the replica died", None
    rows[6]["messages"] = None
    rows[7]["messages"] = [{"role": "user", "content": None}]
    folder = tmp_path / "responses"
    write(folder / "0.parquet", rows[:70])
    output = tmp_path / "streamed.parquet"
    settings = ray.data.DataContext.get_current()
    usual = (settings.target_max_block_size, settings.enable_progress_bars)
    with RewardReplicas(str(pico_reward_model), use_cache=False) as replicas:
        half = replicas.write_rewards(folder, output)
        write(folder / "1.parquet", rows[70:])
        rest = replicas.write_rewards(folder, output)
        whole = replicas.write_rewards(
            write(tmp_path / "all.parquet", rows), tmp_path / "whole.parquet"
        )
    assert (half["num_rows"], half["num_scored"], half["num_errors"]) == (70, 70, 3)
    # Rows with an error are tried again, the others are not.
    assert (rest["num_rows"], rest["num_scored"], rest["num_resumed"]) == (120, 53, 67)
    now = ray.data.DataContext.get_current()
    assert (now.target_max_block_size, now.enable_progress_bars) == usual, "others' data sets"
    streamed = {row["prompt_id"]: row for row in read_table(output).to_pylist()}
    in_memory = {
        row["prompt_id"]: row for row in read_table(tmp_path / "whole.parquet").to_pylist()
    }
    assert streamed.keys() == in_memory.keys()
    for prompt_id, row in streamed.items():
        other = in_memory[prompt_id]
        assert row["reward"] == pytest.approx(other["reward"], abs=1e-4)
        assert (row["error"], row["tokens"]) == (other["error"], other["tokens"])
    assert [i for i in range(120) if streamed[f"p{i}"]["reward"] is None] == [5, 6, 7]
    assert rest["mean_reward"] == pytest.approx(whole["mean_reward"], abs=1e-4)


def test_the_size_from_which_tables_are_streamed(tmp_path: Path) -> None:
    # A million rows held as Python objects are gigabytes; this many are some dozen megabytes.
    assert reward_job.STREAMED_ROWS <= 100_000
