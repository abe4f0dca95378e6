"""The load test at the end of a run: which models, decoded how."""

from __future__ import annotations

import json
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import pytest

from expo_ray.loadtests.contest import Contender
from expo_ray.loadtests.options import LoadtestOptions
from expo_ray.serving.openai_requests import ChatBody
from expo_ray.tables import Prompt
from expo_ray.workflow import speed, stages
from expo_ray.workflow.recipe_file import load_recipe
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

    def compare(*sides: Contender, output: Path, rounds: int, **settings: Any) -> None:
        for name, side in zip(("baseline", "candidate"), sides, strict=True):
            record(side.target, output=output / name, **settings)
            for number, faster in enumerate((3.0, 1.0, 2.0)[:rounds]):
                folder = output / name / f"round-{number}"
                folder.mkdir(parents=True)
                point = {"request_throughput": faster}
                (folder / "summary.json").write_text(json.dumps({"points": [point]}))

    monkeypatch.setattr(speed, "loadtest", record)
    monkeypatch.setattr(speed, "compare_targets", compare)
    monkeypatch.setattr(speed, "_fits_twice", lambda *_, **__: True)
    monkeypatch.setattr(stages, "ray_session", lambda _: nullcontext())
    recipe = load_recipe(
        write_recipe(tmp_path, pico_pair, tmp_path, sampling={**SAMPLING, "max_tokens": 6}),
        ["loadtest.rounds=3"],
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
    speed.measure_throughput(run, selection)
    models = [str(run.source(float(label.partition("-")[2] or 0)).model) for label in labels]
    assert [call["model"] for call in calls] == models
    for label in labels[: len(labels) if len(labels) > 1 else 0]:
        # The round of median speed stands for the model.
        file = run.directory.loadtest(label) / "summary.json"
        assert json.loads(file.read_text())["points"] == [{"request_throughput": 2.0}]
    written = json.loads(run.directory.compared_file.read_text())
    assert written == {"baseline": "aligned", **compared}
    news = " ".join(run.progress.lines)  # type: ignore[attr-defined]
    assert ("tested alone" in news) == (labels == ["aligned"])


def test_responses_are_decoded_as_the_evaluation_did(
    tested: tuple[stages.Run, list[dict[str, Any]]],
) -> None:
    run, calls = tested
    selection = {"verdict": "keep-aligned", "best_alpha": 0.0, "rejected_alpha": 2.0}
    speed.measure_throughput(run, selection)
    options: LoadtestOptions = calls[0]["options"]
    body = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], **options.extra_body}
    asked = ChatBody.model_validate(body).sampling(run.recipe.sampling.max_tokens)
    as_evaluated = run.recipe.sampling.model_copy(update={"seed": asked.seed})
    assert asked == as_evaluated
