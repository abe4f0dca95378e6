"""What answers are checked against goes from prompts through responses to the check."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from expo_ray import score
from expo_ray.errors import ConfigError, TableError
from expo_ray.serving import (
    GeneratorReplicas,
    ModelSource,
    RewardReplicas,
    SamplingParams,
    reward_job,
)
from expo_ray.tables import RESPONSES_SCHEMA, read_prompts, read_table

SAMPLING = SamplingParams(max_tokens=3, num_samples=2)


def test_answers_go_from_prompts_to_the_check(
    ray_cluster: str,
    pico_pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"q{i}", "gold": i, "tests": ["assert True"]} for i in range(3)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_prompts(prompts, columns={"answer": "gold"})
    source, path = ModelSource(model=str(pico_pair[1])), tmp_path / "responses.parquet"
    with GeneratorReplicas() as replicas:
        replicas.write_responses(source, read, path, sampling=SAMPLING)
        again = replicas.write_responses(source, read, path, sampling=SAMPLING)
        assert again["num_generated"] == 0
        other = read_prompts(prompts, columns={"answer": "prompt"})
        with pytest.raises(ConfigError, match="other answers to check against") as caught:
            replicas.write_responses(source, other, path, sampling=SAMPLING)
        assert (caught.value.got, caught.value.expected) == ("'0'", "'q0'")
        prompts.write_text(prompts.read_text().replace("q1", "q9"))
        other = read_prompts(prompts, columns={"answer": "gold"})
        with pytest.raises(ConfigError, match="answers other prompts than these") as caught:
            replicas.write_responses(source, other, path, sampling=SAMPLING)
    assert (caught.value.got, caught.value.expected) == ("'q1'", "'q9'")
    table = read_table(path, RESPONSES_SCHEMA)
    assert table["answer"].to_pylist() == ["0", "0", "1", "1", "2", "2"]
    assert table["tests"].to_pylist() == ['["assert True"]'] * 6
    assert "constraints" not in table.column_names

    right = table.to_pylist()[0]["response"]
    answers = table.set_column(
        table.column_names.index("answer"), "answer", [[right, right, "never so", None, right, "x"]]
    )
    pq.write_table(answers, path)
    expected = [float(row["response"].split() == right.split()) for row in table.to_pylist()]
    with RewardReplicas("check:exact") as replicas:
        made = replicas.write_rewards(path, tmp_path / "whole.parquet")
        monkeypatch.setattr(reward_job, "STREAMED_ROWS", 1)
        replicas.write_rewards(path, tmp_path / "streamed.parquet")
    whole = read_table(tmp_path / "whole.parquet").to_pylist()
    assert [row["reward"] for row in whole] == [*expected[:2], 0.0, None, expected[4], 0.0]
    assert whole[0]["reward"] == 1.0
    assert "no `answer` to check against" in whole[3]["error"]
    assert made["reward_model"] == "check:exact"
    streamed = read_table(tmp_path / "streamed.parquet").to_pylist()
    key = lambda row: (row["prompt_id"], row["sample"])  # noqa: E731
    assert sorted(streamed, key=key) == whole

    pq.write_table(table.drop_columns(["answer"]), path)
    with pytest.raises(TableError, match="responses lack the column `answer`"):
        score(path, reward_model="check:number", output=tmp_path / "none.parquet")
    assert not (tmp_path / "none.parquet").exists()
