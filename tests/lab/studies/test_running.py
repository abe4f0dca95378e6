"""One real study, very small: models trained, measured on Ray, and not once more."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from expo_ray.lab.settings import LabSettings
from expo_ray.lab.studies.curves import measure_curve, read_curve
from expo_ray.lab.studies.making import make_model
from expo_ray.lab.studies.running import Cell, run_study
from expo_ray.lab.studies.study import Arm, Model, Study, StudySettings
from expo_ray.lab.studies.summary import summarize
from expo_ray.lab.tasks.sums import right_answer

SFT = Model(kind="sft")
ARMS = {
    "base + SFT": (Model(kind="base"), Model(kind="sft", parents=(Model(kind="base"),))),
    "DPO": (SFT, Model(kind="preference", parents=(SFT,))),
    "longest": (
        SFT,
        Model(
            kind="preference", parents=(SFT,), options={"longest_first": True, "optim": "adagrad"}
        ),
    ),
}
STUDY = Study(
    name="micro",
    title="Micro",
    question="Does it run?",
    published="nothing",
    limits="everything",
    arms=tuple(
        Arm(name=name, initial=initial, aligned=aligned)
        for name, (initial, aligned) in ARMS.items()
    ),
    alphas=(-1.0, 0.0, 2.0),
)


class Micro(StudySettings):
    """A laboratory of a few steps."""

    def lab(self, seed: int) -> LabSettings:
        return LabSettings(
            seed=seed,
            num_eval_prompts=6,
            num_sft_examples=48,
            num_preference_pairs=64,
            preference_fraction=0.5,
            dpo_batch_size=8,
            max_new_tokens=4,
        )


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Micro:
    return Micro(seeds=(5,), cache=str(tmp_path_factory.mktemp("studies")))


@pytest.fixture(scope="module")
def cells(settings: Micro, ray_cluster: str) -> list[Cell]:
    return run_study(STUDY, settings, address=ray_cluster)


# Every worker imports TRL: a minute where nothing else runs.
pytestmark = [pytest.mark.ray, pytest.mark.slow]


def test_every_pair_is_measured_at_every_alpha(cells: list[Cell], settings: Micro) -> None:
    found = summarize(STUDY, settings, cells)
    assert [arm["name"] for arm in found["arms"]] == list(ARMS)
    for arm in found["arms"]:
        assert [point["alpha"] for point in arm["curve"]] == [-1.0, 0.0, 2.0]
        assert arm["relative_delta"] > 0
    assert found["num_prompts"] == 6


def test_models_are_shared_and_kept(cells: list[Cell], settings: Micro, ray_cluster: str) -> None:
    models = sorted((Path(settings.cache) / "models").iterdir())
    assert len(models) == 5  # one base, its SFT, one SFT, two aligned from it
    assert all((folder / "training.json").is_file() for folder in models)
    files = [path for path in Path(settings.cache).rglob("*") if path.is_file()]
    before = {path: path.stat().st_mtime_ns for path in files}
    missing = cells[-1].curve / "alpha-2.json"
    text = missing.read_text()
    missing.unlink()
    run_study(STUDY, settings, address=ray_cluster)
    after = {path: path.stat().st_mtime_ns for path in before}
    assert [path for path in before if before[path] != after[path]] == [missing]
    assert missing.read_text() == text, "the same answers come out again"


def test_alpha_minus_one_answers_as_the_initial_model(cells: list[Cell]) -> None:
    """Two pairs from one initial model meet there; at alpha 0 they are different models."""
    first, second = (read_curve(cell.curve, (-1.0, 0.0))[1] for cell in cells[1:])
    assert first[0]["truth"] == second[0]["truth"]
    assert first[0]["tokens"] == second[0]["tokens"]
    assert first[1]["weights_digest"] != second[1]["weights_digest"]


@pytest.mark.parametrize("method", ["ipo", "kto", "simpo"])
def test_each_method_moves_the_model(
    cells: list[Cell], settings: Micro, method: str, tmp_path: Path
) -> None:
    model = Model(kind="preference", parents=(SFT,), options={"method": method})
    facts = make_model(
        model,
        settings.lab(5),
        [cells[1].initial],
        tmp_path / method,
        on_step=lambda *_: None,
        mergekit="",
    )
    assert facts["num_steps"] == 4, "as many steps as DPO takes"
    before = AutoModelForCausalLM.from_pretrained(cells[1].initial).state_dict()
    after = AutoModelForCausalLM.from_pretrained(tmp_path / method).state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)


def test_grpo_starts_from_an_initial_model_of_its_task(settings: Micro, tmp_path: Path) -> None:
    sums = {"task": "sums", "num_eval_prompts": 4}
    initial = Model(kind="sft", settings=sums)
    aligned = Model(
        kind="grpo",
        parents=(initial,),
        settings=sums,
        options={"num_steps": 2, "batch_size": 2, "num_samples": 2},
    )
    for model, parents in ((initial, []), (aligned, [tmp_path / "sft"])):
        facts = make_model(
            model,
            settings.lab(5),
            parents,
            tmp_path / model.kind,
            on_step=lambda *_: None,
            mergekit="",
        )
    assert facts["num_steps"] == 2
    assert facts["num_prompts"] == 4
    arm = Arm(name="sums", initial=initial, aligned=aligned)
    cell = Cell(arm=arm, seed=5, lab=settings.lab(5), cache=tmp_path)
    measure_curve(tmp_path / "sft", tmp_path / "grpo", cell.asked, [0.0], cell.curve)
    [point] = read_curve(cell.curve, [0.0])[1]
    assert set(point["truth"]) <= {0, 1}, "the truth of sums, not that of lists"
    for example in point["examples"]:
        right_answer(example["prompt"])  # raises where it asks for no sum


def test_what_training_told_stands_beside_the_model(cells: list[Cell]) -> None:
    facts = json.loads((cells[1].aligned / "training.json").read_text())
    assert facts["num_pairs"] == 32
    assert facts["num_steps"] == 4
