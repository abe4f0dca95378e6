"""Prompts from elsewhere: buckets, datasets on the Hub, other column names, random draws."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expo_ray.errors import ConfigError, TableError
from expo_ray.tables import read_prompts
from expo_ray.tables.prompt_files import pin_prompts
from expo_ray.tables.prompts import write_prompts
from tests import samples
from tests.checkpoints import s3_server
from tests.checkpoints.hub_server import HubServer, hub_server

FEEDBACK = "hf://datasets/HuggingFaceH4/ultrafeedback_binarized"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with hub_server(monkeypatch) as server:
        yield server


@pytest.fixture
def feedback(hub: HubServer, tmp_path: Path) -> str:
    """A dataset laid out as UltraFeedback is; returns its commit."""
    folder = tmp_path / "feedback"
    (folder / "data").mkdir(parents=True)
    for split in ("train_prefs", "test_gen"):
        for part in range(2):
            rows = [
                {
                    "prompt": f"{split} {part} {i}",
                    "prompt_id": f"{split}-{part}-{i}",
                    "messages": [
                        {"role": "user", "content": f"{split} {part} {i}"},
                        {"role": "assistant", "content": "an answer"},
                    ],
                    "score_chosen": 8.0,
                }
                for i in range(3)
            ]
            name = f"{split}-0000{part}-of-00002.parquet"
            pq.write_table(pa.Table.from_pylist(rows), folder / "data" / name)
    (folder / "README.md").write_text("a card")
    (folder / "ultrafeedback_binarized.py").write_text("raise SystemExit('must not run')")
    return hub.add("HuggingFaceH4/ultrafeedback_binarized", folder)


def test_a_split_of_a_dataset_is_read_from_its_parquet_files(hub: HubServer, feedback: str) -> None:
    prompts = read_prompts(f"{FEEDBACK}#split=test_gen")
    assert [p.prompt_id for p in prompts] == [
        f"test_gen-{part}-{i}" for part in range(2) for i in range(3)
    ]
    assert prompts[4].messages == ({"role": "user", "content": "test_gen 1 1"},)
    # Nothing but the two files was fetched: no other split, no script.
    fetched = {path for method, path, _ in hub.log if method == "GET" and "/resolve/" in path}
    assert len(fetched) == 2 and all(f"/{feedback}/data/test_gen" in path for path in fetched)


def test_a_dataset_is_pinned_to_a_commit(feedback: str) -> None:
    pinned = pin_prompts(f"{FEEDBACK}#split=test_gen")
    assert pinned == f"{FEEDBACK}@{feedback}#split=test_gen"
    assert pin_prompts(pinned) == pinned
    assert pin_prompts("local.jsonl") == "local.jsonl"
    assert len(read_prompts(pinned)) == 6


def test_prompts_come_from_one_file_of_a_dataset(hub: HubServer, tmp_path: Path) -> None:
    rows = samples.prompts()
    folder = tmp_path / "alpaca"
    folder.mkdir()
    (folder / "alpaca_eval.json").write_text(json.dumps(rows))
    (folder / "alpaca_eval_gpt4_baseline.json").write_text("[]")
    hub.add("tatsu-lab/alpaca_eval", folder)
    address = "hf://datasets/tatsu-lab/alpaca_eval/alpaca_eval.json"
    assert read_prompts(address) == read_prompts(samples.write_lines(tmp_path / "p.jsonl", rows))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (FEEDBACK, "has several splits"),
        (f"{FEEDBACK}#split=test", "no such split"),
        (f"{FEEDBACK}@v9#split=test_gen", "no such revision"),
        ("hf://datasets/nobody/nothing", "no such dataset"),
        ("hf://datasets/only-a-name", "not the address"),
        ("hf://owner/a-model", "not the address"),
        ("hf://datasets/a/b/../../c", "not the address"),
    ],
)
@pytest.mark.usefixtures("feedback")
def test_what_a_dataset_does_not_have_is_named(address: str, message: str) -> None:
    with pytest.raises(TableError, match=message):
        read_prompts(address)


def test_one_folder_of_several_configurations(hub: HubServer, tmp_path: Path) -> None:
    for name in ("main", "socratic"):
        folder = tmp_path / "gsm8k" / name
        folder.mkdir(parents=True)
        pq.write_table(pa.table({"question": [name]}), folder / "test-00000-of-00001.parquet")
    hub.add("openai/gsm8k", tmp_path / "gsm8k")
    with pytest.raises(TableError, match="several folders"):
        read_prompts("hf://datasets/openai/gsm8k#split=test")
    [prompt] = read_prompts(
        "hf://datasets/openai/gsm8k/main#split=test", columns={"prompt": "question"}
    )
    assert prompt.messages[0]["content"] == "main"


def test_a_hub_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch, hub: HubServer) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TableError, match="the dataset cannot be read") as caught:
        read_prompts(f"{FEEDBACK}#split=test_gen")
    assert "ConnectError" in str(caught.value.got)


def test_offline_says_so(monkeypatch: pytest.MonkeyPatch, feedback: str) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(TableError, match="HF_HUB_OFFLINE"):
        read_prompts(f"{FEEDBACK}#split=test_gen")


def test_objects_in_a_bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [{"prompt": f"number {i}"} for i in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "p.parquet")
    with s3_server.s3_server() as url:
        s3_server.use(monkeypatch, url)
        bucket = s3_server.client(url)
        lines = "\n".join(map(json.dumps, rows)).encode()
        bucket.put_object(Bucket=s3_server.BUCKET, Key="p/p.jsonl", Body=lines)
        body = (tmp_path / "p.parquet").read_bytes()
        bucket.put_object(Bucket=s3_server.BUCKET, Key="p/p.parquet", Body=body)
        found = [
            read_prompts(f"s3://{s3_server.BUCKET}/p/p.{kind}") for kind in ("jsonl", "parquet")
        ]
        assert found[0] == found[1] == read_prompts(tmp_path / "p.parquet")
        with pytest.raises(TableError, match="does not exist"):
            read_prompts(f"s3://{s3_server.BUCKET}/p/none.jsonl")


def write(folder: Path, rows: list[dict[str, object]]) -> Path:
    path = folder / "p.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_columns_of_other_names(tmp_path: Path) -> None:
    path = write(tmp_path, [{"question": "why?", "uid": "q1", "prompt": "not this"}])
    [prompt] = read_prompts(path, columns={"prompt": "question", "prompt_id": "uid"})
    assert (prompt.prompt_id, prompt.messages[0]["content"]) == ("q1", "why?")
    [prompt] = read_prompts(path, columns={"prompt_id": "uid"})
    assert (prompt.prompt_id, prompt.messages[0]["content"]) == ("q1", "not this")
    with pytest.raises(TableError, match="lacks a column") as error:
        read_prompts(path, columns={"prompt": "text"})
    assert (error.value.got, error.value.expected) == ("prompt, question, uid", "text")
    with pytest.raises(ConfigError, match="no such column"):
        read_prompts(path, columns={"reward": "question"})


def test_a_draw_is_random_seeded_and_hardly_changes_when_rows_are_appended(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": f"number {i}"} for i in range(1000)]
    few = write(tmp_path, rows)
    drawn = [p.prompt_id for p in read_prompts(few, num_prompts=100, seed=1)]
    assert drawn == [p.prompt_id for p in read_prompts(few, num_prompts=100, seed=1)]
    assert drawn == sorted(drawn, key=int) and len(set(drawn)) == 100
    assert 300 < sum(map(int, drawn)) / 100 < 700
    other = [p.prompt_id for p in read_prompts(few, num_prompts=100, seed=2)]
    assert len(set(drawn) & set(other)) < 40
    more = write(tmp_path, rows + [{"prompt": f"late {i}"} for i in range(100)])
    again = {p.prompt_id for p in read_prompts(more, num_prompts=100, seed=1)}
    # Every new prompt pushes out one at most: about a tenth.
    pushed_out = set(drawn) - again
    assert len(pushed_out) == sum(int(i) >= 1000 for i in again) < 25
    with pytest.raises(ConfigError, match="more prompts are asked for"):
        read_prompts(few, num_prompts=2000)


def test_prompts_that_were_written_are_read_back(tmp_path: Path) -> None:
    prompts = read_prompts(write(tmp_path, [{"prompt": "a"}, {"prompt": "b", "prompt_id": "x"}]))
    write_prompts(tmp_path / "folder" / "copy.jsonl", prompts)
    assert read_prompts(tmp_path / "folder" / "copy.jsonl") == prompts
