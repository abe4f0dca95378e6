"""What a study says of its numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from expo_ray.extrapolation import format_alpha
from expo_ray.lab.studies.running import Cell
from expo_ray.lab.studies.study import Arm, Model, Study, StudySettings
from expo_ray.lab.studies.summary import alpha_range, estimate, summarize

ALPHAS = (-0.5, 0.0, 1.0, 2.0)


def study_of(*names: str, **facts: object) -> Study:
    arms = tuple(
        Arm(name=name, initial=Model(kind="sft"), aligned=Model(kind="sft", variant=name))
        for name in names
    )
    texts = dict.fromkeys(("title", "question", "published", "limits"), "text")
    return Study(name="a-study", arms=arms, alphas=ALPHAS, **texts, **facts)  # type: ignore[arg-type]


def write_curve(cell: Cell, truth: Mapping[float, list[float]], warnings: list[str]) -> None:
    cell.curve.mkdir(parents=True)
    diagnosis = {"fit": not warnings, "warnings": warnings, "relative_delta": 0.01}
    (cell.curve / "diagnosis.json").write_text(json.dumps(diagnosis))
    for alpha, values in truth.items():
        point = {"alpha": alpha, "truth": values, "tokens": [10] * len(values), "num_cut_off": 0}
        (cell.curve / f"alpha-{format_alpha(alpha)}.json").write_text(json.dumps(point))


def cells_with(
    study: Study, folder: Path, seeds: tuple[int, ...], rises: Mapping[str, float]
) -> tuple[StudySettings, list[Cell]]:
    """Measure a truth that rises to alpha 1 by so much and falls by twice as much at alpha 2."""
    settings = StudySettings(seeds=seeds, cache=str(folder))
    cells = []
    for seed in seeds:
        for arm in study.arms:
            cell = Cell(arm=arm, seed=seed, lab=settings.lab(seed), cache=folder)
            noise = np.random.default_rng(seed).normal(0, 0.1, 40)
            base, rise = noise + 3.0, rises[arm.name]
            truth = {-0.5: base - rise, 0.0: base, 1.0: base + rise + noise, 2.0: base - 2 * rise}
            warnings = ["unrelated"] if rise < 0.2 else []
            write_curve(cell, {a: v.tolist() for a, v in truth.items()}, warnings)
            cells.append(cell)
    return settings, cells


def test_the_interval_over_prompts_does_not_see_that_seeds_differ() -> None:
    rng = np.random.default_rng(0)
    near = [rng.normal(0.5, 1, 100) for _ in range(3)]
    apart = [values + shift for values, shift in zip(near, (-1, 0, 1), strict=True)]
    first, second = estimate(near), estimate(apart)
    assert second["mean"] == pytest.approx(first["mean"])
    assert second["ci_low"] == pytest.approx(first["ci_low"])
    assert second["ci_high"] == pytest.approx(first["ci_high"])
    # The one over seeds sees it, and is never tighter than Student's over the means of the seeds.
    means = np.array([values.mean() for values in apart])
    reach = stats.t.ppf(0.975, 2) * means.std(ddof=1) / np.sqrt(3)
    assert second["seeds_ci_low"] <= means.mean() - reach + 1e-9
    assert second["seeds_ci_high"] >= means.mean() + reach - 1e-9


def test_two_seeds_have_no_interval_over_seeds() -> None:
    found = estimate([np.array([0.1, 0.3, 0.2]), np.array([0.5, 0.1, 0.2])])
    assert found["seeds_ci_low"] is None
    assert found["ci_low"] < found["mean"] < found["ci_high"]


def test_alpha_is_chosen_on_other_prompts_than_it_is_measured_on(tmp_path: Path) -> None:
    study = study_of("only")
    settings = StudySettings(seeds=(2,), cache=str(tmp_path))
    cell = Cell(arm=study.arms[0], seed=2, lab=settings.lab(2), cache=tmp_path)
    flat = [0.0] * 8
    # Every second prompt likes alpha 1, the others alpha 2.
    truth = {-0.5: flat, 0.0: flat, 1.0: [1.0, -1.0] * 4, 2.0: [-1.0, 1.0] * 4}
    write_curve(cell, truth, [])
    [arm] = summarize(study, settings, [cell])["arms"]
    assert arm["best_alphas"] == [1.0, 2.0]
    assert arm["gain"]["mean"] == -1.0, "each half pays for what the other one chose"


def test_a_tie_keeps_the_aligned_model(tmp_path: Path) -> None:
    study = study_of("flat")
    settings, cells = cells_with(study, tmp_path, (2,), {"flat": 0.0})
    truth = dict.fromkeys(ALPHAS, [3.0] * 40)
    for alpha, values in truth.items():
        path = cells[0].curve / f"alpha-{format_alpha(alpha)}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"truth": values}))
    found = summarize(study, settings, cells)
    [arm] = found["arms"]
    assert arm["best_alphas"] == [0.0, 0.0]
    assert arm["worse_from"] is None
    assert found["shows"].startswith("In no setting did extrapolation raise the truth")


def test_a_step_back_is_no_extrapolation(tmp_path: Path) -> None:
    study = study_of("spoiled")
    settings = StudySettings(seeds=(2,), cache=str(tmp_path))
    cell = Cell(arm=study.arms[0], seed=2, lab=settings.lab(2), cache=tmp_path)
    write_curve(cell, {-0.5: [2.0] * 8, 0.0: [1.0] * 8, 1.0: [0.0] * 8, 2.0: [0.0] * 8}, [])
    [arm] = summarize(study, settings, [cell])["arms"]
    assert arm["best_alphas"] == [0.0, 0.0]
    assert arm["gain"]["mean"] == 0.0
    assert arm["worse_from"] == 1.0


def test_a_study_says_what_gained_what_fell_and_who_was_warned_of(tmp_path: Path) -> None:
    study = study_of("strong", "weak", yardstick="weak")
    settings, cells = cells_with(study, tmp_path, (2, 3, 4), {"strong": 0.5, "weak": 0.1})
    found = summarize(study, settings, cells)
    strong, weak = found["arms"]
    assert strong["best_alphas"] == [1.0] * 6
    assert strong["gain"]["mean"] == pytest.approx(0.5, abs=0.1)
    assert strong["gain"]["ci_low"] > 0 < strong["gain"]["seeds_ci_low"]
    assert strong["worse_from"] == weak["worse_from"] == 2.0
    # The yardstick is the weak setting's aligned model, as it is.
    expected = strong["after"] - weak["before"]
    assert strong["over_yardstick"]["mean"] == pytest.approx(expected)
    assert found["warned"]["alignment_steps"] == {
        "num_pairs": 6,
        "num_warned": 3,
        "num_unfit": 3,
    }
    assert found["shows"].startswith("Extrapolation raised the truth in strong (alpha 1, +0.")
    assert "over seeds" in found["shows"]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("alphas", "text"),
    [([2.0, 2.0], "2"), ([5.0, 0.5, 1.0], "0.5 to 5"), ([-0.5, 0.0], "-0.5 to 0")],
)
def test_chosen_alphas_are_told_from_the_smallest_to_the_largest(
    alphas: list[float], text: str
) -> None:
    assert alpha_range(alphas) == text
