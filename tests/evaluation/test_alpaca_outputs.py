from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from expo_ray.errors import TableError
from expo_ray.evaluation import alpaca_eval_outputs
from expo_ray.serving import SamplingParams

SAMPLING = SamplingParams(max_tokens=8)


def test_official_outputs_of_an_extrapolated_model(
    pico_pair: tuple[Path, Path], tmp_path: Path, ray_cluster: str
) -> None:
    initial, aligned = pico_pair
    prompts = tmp_path / "prompts.jsonl"
    # Ids that sort otherwise than the file: the order of the file is the official one.
    rows = [
        {"prompt_id": str(9 - i), "instruction": f"Say {i}.", "dataset": f"set-{i}"}
        for i in range(3)
    ]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "outputs.json"

    result = alpaca_eval_outputs(
        str(aligned),
        prompts=prompts,
        output=output,
        initial=str(initial),
        alpha=0.5,
        sampling=SAMPLING,
        address=ray_cluster,
    )

    outputs = json.loads(output.read_text())
    assert [row["instruction"] for row in outputs] == ["Say 0.", "Say 1.", "Say 2."]
    assert [row["dataset"] for row in outputs] == ["set-0", "set-1", "set-2"]
    assert {row["generator"] for row in outputs} == {"aligned@alpha=0.5"}
    assert {row["datasplit"] for row in outputs} == {"eval"}
    table = pq.read_table(tmp_path / "outputs.responses.parquet").to_pylist()
    responses = {row["prompt_id"]: row["response"] for row in table}
    assert [row["output"] for row in outputs] == [responses[row["prompt_id"]] for row in rows]
    assert result["num_outputs"] == 3
    assert result["generator"] == "aligned@alpha=0.5"

    written = output.read_bytes()
    output.unlink()
    alpaca_eval_outputs(
        str(aligned),
        prompts=prompts,
        output=output,
        initial=str(initial),
        alpha=0.5,
        sampling=SAMPLING,
        address=ray_cluster,
    )
    assert output.read_bytes() == written


def test_wrong_prompts_write_nothing(pico_pair: tuple[Path, Path], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text("[]")
    with pytest.raises(TableError):
        alpaca_eval_outputs(str(pico_pair[1]), prompts=prompts, output=tmp_path / "o.json")
    assert list(tmp_path.iterdir()) == [prompts]
