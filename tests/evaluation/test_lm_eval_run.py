"""lm-evaluation-harness itself, on a task with its own data: nothing is fetched."""

from __future__ import annotations

import json
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest

from expo_ray.errors import ConfigError, EvaluationError
from expo_ray.evaluation import lm_eval_results, lm_eval_run, open_llm_changes
from expo_ray.evaluation.comparison import compare_results
from expo_ray.serving import ModelSource, ServedModel
from tests.docs.workbench import write_harness_answers, write_harness_task


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return write_harness_task(tmp_path / "tasks")


@pytest.mark.timeout(600)
def test_a_pair_is_measured_and_compared(
    pico_pair: tuple[Path, Path], tasks: Path, tmp_path: Path, ray_cluster: str
) -> None:
    def measured(model: Path, **changes: Any) -> dict[str, Any]:
        given: dict[str, Any] = {"output": tmp_path / model.name, "tasks": ["fruit"]}
        given |= {"include_path": tasks, "num_shots": 2, "address": ray_cluster}
        return lm_eval_results(str(model), **{**given, **changes})

    before, after = (measured(model) for model in pico_pair)
    assert before["weights_digest"] != after["weights_digest"]
    [task] = after["tasks"]
    assert (task["name"], task["num_shots"]) == ("fruit", 2)
    [file] = (tmp_path / "aligned" / "fruit").glob("results_*.json")
    document = json.loads(file.read_text())
    assert document["expo_ray"]["weights_digest"] == after["weights_digest"]
    # The alignment tax, and the same in pairs.
    folders = [tmp_path / model.name for model in pico_pair]
    [row] = open_llm_changes(*folders)["tasks"]
    scores = [side["tasks"][0]["scores"]["acc"]["value"] for side in (before, after)]
    assert [row["before"], row["after"]] == scores
    found = compare_results(*folders, metric="acc")
    assert found["tasks"][0]["num_items"] == 6
    # What is measured stays; another model or setting is refused.
    written = file.stat().st_mtime_ns
    assert measured(pico_pair[1]) == after
    assert file.stat().st_mtime_ns == written
    with pytest.raises(ConfigError, match="other settings") as error:
        measured(pico_pair[0], output=folders[1])
    assert "weights_digest" in str(error.value.got)
    with pytest.raises(ConfigError, match="other settings") as error:
        measured(pico_pair[1], num_shots=3)
    assert error.value.got == "num_shots of fruit"


@pytest.mark.slow
def test_a_service_is_asked_by_its_url(
    pico_pair: tuple[Path, Path], tasks: Path, tmp_path: Path, ray_cluster: str
) -> None:
    write_harness_answers(tasks)
    with ServedModel(ModelSource(model=str(pico_pair[1])), engine="transformers") as served:
        found = lm_eval_results(
            f"{served.url}/v1",
            output=tmp_path / "service",
            tasks=["greetings"],
            include_path=tasks,
            address=ray_cluster,
        )
        assert found["weights_digest"] == served.weights_digest
        # As the harness asks: its own seed, and what the task says.
        chat = {"model": served.model, "max_tokens": 16, "temperature": 1.0, "seed": 1234}
        asked = [[{"role": "user", "content": f"Say hello ({i})."}] for i in range(3)]
        answers = [
            httpx.post(
                f"{served.url}/v1/chat/completions",
                json={**chat, "messages": messages, "stop": ["\n\n"]},
                timeout=60,
            ).json()["choices"][0]["message"]["content"]
            for messages in asked
        ]
    assert [task["name"] for task in found["tasks"]] == ["greetings"]
    [file] = (tmp_path / "service" / "greetings").glob("samples_*.jsonl")
    rows = sorted(map(json.loads, file.read_text().splitlines()), key=lambda row: row["doc_id"])
    assert [row["resps"][0][0] for row in rows] == answers
    assert any(answers)


def test_builds_of_vllm_that_the_harness_does_not_know_are_refused(
    pico_pair: tuple[Path, Path], tasks: Path, tmp_path: Path, ray_cluster: str
) -> None:
    if find_spec("vllm") is not None and "vllm" in packages_distributions().get("vllm", ()):
        pytest.skip("the harness knows this vLLM")
    given = {"tasks": ["fruit"], "include_path": tasks, "address": ray_cluster, "limit": 1}
    with pytest.raises(ConfigError, match="finds no package vllm") as error:
        lm_eval_results(str(pico_pair[1]), output=tmp_path / "out", backend="vllm", **given)
    assert "URL" in str(error.value.hint)
    # Nothing was measured, so nothing is in the way of the same folder.
    assert lm_eval_results(str(pico_pair[1]), output=tmp_path / "out", **given)["tasks"]


def test_a_failure_names_its_task(
    pico_pair: tuple[Path, Path], tasks: Path, tmp_path: Path, ray_cluster: str
) -> None:
    with pytest.raises(EvaluationError, match="harness failed") as error:
        lm_eval_results(
            str(pico_pair[1]),
            output=tmp_path / "out",
            tasks=["no_such_task"],
            include_path=tasks,
            address=ray_cluster,
        )
    assert error.value.where == "no_such_task"
    assert not (tmp_path / "out" / "no_such_task").exists()


def test_the_leaderboards_have_their_examples() -> None:
    first = lm_eval_run._expand(["open-llm-v1", "boolq"], 3)
    assert first == {
        "arc_challenge": 25,
        "hellaswag": 10,
        "mmlu": 5,
        "truthfulqa_mc2": 0,
        "winogrande": 5,
        "gsm8k": 5,
        "boolq": 3,
    }
    second = lm_eval_run._expand(["open-llm-v2"], None)
    assert set(second.values()) == {None}
    assert "leaderboard_mmlu_pro" in second


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": ["../x"]}, "not the name of a task"),
        ({"backend": "gguf"}, "unknown backend"),
    ],
)
def test_wrong_requests_write_nothing(
    pico_pair: tuple[Path, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    given = {"model": str(pico_pair[1]), "output": tmp_path / "out", "tasks": ["fruit"], **changes}
    with pytest.raises(ConfigError, match=message):
        lm_eval_results(given.pop("model"), **given)
    assert not (tmp_path / "out").exists()
