from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from expo_ray import evaluation
from expo_ray.cli.main import app
from expo_ray.errors import ConfigError, TableError
from expo_ray.evaluation import alpaca_eval_outputs, alpaca_outputs
from expo_ray.serving import PAPER_SAMPLING, SamplingParams
from tests.checkpoints.hub_server import hub_server
from tests.thinking_model import save_speaker

SAMPLING = SamplingParams(max_tokens=8)


def test_official_outputs_of_an_extrapolated_model(
    pico_pair: tuple[Path, Path],
    tmp_path: Path,
    ray_cluster: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    initial, aligned = pico_pair
    (tmp_path / "dataset").mkdir()
    file = tmp_path / "dataset" / "alpaca_eval.jsonl"
    # Ids that sort otherwise than the file: the order of the file is the official one.
    rows = [
        {"prompt_id": str(9 - i), "instruction": f"Say {i}.", "dataset": f"set-{i}"}
        for i in range(3)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "outputs.json"

    def answer() -> dict[str, Any]:
        return alpaca_eval_outputs(
            str(aligned),
            prompts="hf://datasets/owner/alpaca_eval",
            output=output,
            initial=str(initial),
            alpha=0.5,
            sampling=SAMPLING,
            address=ray_cluster,
        )

    with hub_server(monkeypatch) as hub:
        hub.add("owner/alpaca_eval", file.parent)
        result = answer()
        written = output.read_bytes()
        output.unlink()
        answer()  # from the table that stands
    assert output.read_bytes() == written

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


def test_what_was_thought_is_told_apart_as_asked(tmp_path: Path, ray_cluster: str) -> None:
    model = save_speaker(tmp_path / "thinker", "w</think>Yes.")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"instruction": "Say yes."}\n')
    sampling = SamplingParams(temperature=0, max_tokens=40)

    def answer(output: str, reasoning: str) -> tuple[str, Any]:
        alpaca_eval_outputs(
            str(model),
            prompts=prompts,
            output=tmp_path / output,
            sampling=sampling,
            reasoning=reasoning,
            address=ray_cluster,
        )
        [row] = json.loads((tmp_path / output).read_text())
        return row["output"], json.loads(row["sampling"]).get("reasoning")

    assert answer("off.json", "off") == ("w</think>Yes.", "off")
    with pytest.raises(ConfigError, match="other settings"):
        answer("off.json", "auto")
    assert answer("auto.json", "auto") == ("Yes.", None)
    with pytest.raises(ConfigError, match="no such mark of a thought"):
        answer("other.json", "plan")
    assert not (tmp_path / "other.json").exists()


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".csv"])
def test_the_dataset_of_a_row_is_read_from_every_kind_of_file(tmp_path: Path, suffix: str) -> None:
    file = tmp_path / f"prompts{suffix}"
    rows = [{"instruction": f"Say {i}.", "dataset": f"set-{i}"} for i in range(2)]
    writers = {
        ".jsonl": lambda: file.write_text("".join(json.dumps(row) + "\n" for row in rows)),
        ".json": lambda: file.write_text(json.dumps({"data": rows})),
        ".parquet": lambda: pq.write_table(pa.Table.from_pylist(rows), file),
        ".csv": lambda: pacsv.write_csv(pa.Table.from_pylist(rows), file),
    }
    writers[suffix]()
    assert alpaca_outputs._datasets(str(file)) == ["set-0", "set-1"]


def test_the_flags_of_the_command_arrive(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def record(model: str, **settings: Any) -> dict[str, Any]:
        seen.update(settings, model=model)
        return {}

    monkeypatch.setattr(evaluation, "alpaca_eval_outputs", record)
    command = "evaluate alpaca-eval m --prompts s3://b/p.jsonl --output o.json --initial i --seed 7"
    command += " --alpha-rules rules.yaml --engine transformers --max-tokens 9 --replicas 2"
    command += " --reasoning think"
    result = CliRunner().invoke(app, command.split())
    assert result.exit_code == 0, result.output
    assert seen["sampling"] == PAPER_SAMPLING.model_copy(update={"max_tokens": 9, "seed": 7})
    names = ("prompts", "alpha_rules", "engine", "num_replicas", "reasoning")
    assert [seen[n] for n in names] == ["s3://b/p.jsonl", "rules.yaml", "transformers", 2, "think"]


def test_tensors_that_one_side_may_lack_are_those_of_a_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.jsonl").write_text('{"instruction": "a"}\n')
    question = {"question_id": 1, "category": "math", "turns": ["a", "b"]}
    Path("question.jsonl").write_text(json.dumps(question) + "\n")
    for words in (("alpaca-eval", "m", "--prompts", "p.jsonl"), ("mt-bench", "m")):
        flags = ("--output", "o.json", "--extra-tensors", "copy:score.*")
        with pytest.raises(ConfigError, match="extra tensors are those of a pair") as caught:
            CliRunner().invoke(app, ["evaluate", *words, *flags], catch_exceptions=False)
        assert caught.value.got == "copy:score.*"


def test_wrong_prompts_write_nothing(pico_pair: tuple[Path, Path], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.json"
    prompts.write_text("[]")
    with pytest.raises(TableError):
        alpaca_eval_outputs(str(pico_pair[1]), prompts=prompts, output=tmp_path / "o.json")
    assert list(tmp_path.iterdir()) == [prompts]
