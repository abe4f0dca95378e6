"""The load test at the end of a run: which models, decoded how."""

from __future__ import annotations

import json
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest

from expo_ray.loadtests.options import LoadtestOptions
from expo_ray.serving.openai_requests import ChatBody
from expo_ray.tables import Prompt
from expo_ray.workflow import stages
from expo_ray.workflow.recipe import load_recipe
from expo_ray.workflow.run_dir import RunDir
from tests.workflow.test_run import write_recipe

SAMPLING = {
    "temperature": 0.3,
    "top_p": 0.8,
    "top_k": 7,
    "stop": ["END"],
    "presence_penalty": 0.1,
    "frequency_penalty": 0.2,
}


class News:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def tested(
    tmp_path: Path, pico_pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> tuple[stages.Run, list[dict[str, Any]]]:
    """A run whose load tests are recorded and not made."""
    calls: list[dict[str, Any]] = []

    def record(model: str, **settings: Any) -> None:
        calls.append({"model": model, **settings})

    monkeypatch.setattr(stages, "loadtest", record)
    monkeypatch.setattr(stages, "ray_session", lambda _: nullcontext())
    recipe = load_recipe(
        write_recipe(tmp_path, pico_pair, tmp_path, sampling={**SAMPLING, "max_tokens": 6})
    )
    run = stages.Run(
        recipe=recipe,
        directory=RunDir(tmp_path / "run"),
        address=None,
        progress=News(),  # type: ignore[arg-type]
        stack=ExitStack(),
        initial=str(pico_pair[0]),
        aligned=str(pico_pair[1]),
        prompts=[Prompt(prompt_id="0", messages=({"role": "user", "content": "Hi"},))],
    )
    return run, calls


@pytest.mark.parametrize(
    ("selection", "labels", "compared"),
    [
        (
            {"verdict": "extrapolate", "best_alpha": 0.5, "rejected_alpha": None},
            ["aligned", "alpha-0.5"],
            {"candidate": "alpha-0.5", "candidate_rejected": False},
        ),
        (
            {"verdict": "keep-aligned", "best_alpha": 0.0, "rejected_alpha": 2.0},
            ["aligned", "alpha-2"],
            {"candidate": "alpha-2", "candidate_rejected": True},
        ),
        (
            {"verdict": "keep-aligned", "best_alpha": 0.0, "rejected_alpha": None},
            ["aligned"],
            {"candidate": None, "candidate_rejected": False},
        ),
    ],
)
def test_the_models_that_are_tested(
    tested: tuple[stages.Run, list[dict[str, Any]]],
    selection: dict[str, Any],
    labels: list[str],
    compared: dict[str, Any],
) -> None:
    run, calls = tested
    stages.measure_throughput(run, selection)
    assert [call["output"].name for call in calls] == labels
    written = json.loads(run.directory.compared_file.read_text())
    assert written == {"baseline": "aligned", **compared}
    news = " ".join(run.progress.lines)  # type: ignore[attr-defined]
    assert ("tested alone" in news) == (labels == ["aligned"])


def test_responses_are_decoded_as_the_evaluation_did(
    tested: tuple[stages.Run, list[dict[str, Any]]],
) -> None:
    run, calls = tested
    selection = {"verdict": "keep-aligned", "best_alpha": 0.0, "rejected_alpha": 2.0}
    stages.measure_throughput(run, selection)
    options: LoadtestOptions = calls[0]["options"]
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **options.extra_body}
    asked = ChatBody.model_validate(body).sampling(run.recipe.sampling.max_tokens)
    as_evaluated = run.recipe.sampling.model_copy(update={"seed": asked.seed})
    assert asked == as_evaluated
