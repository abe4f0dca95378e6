"""Names in the cache, and what the records say."""

from __future__ import annotations

from pathlib import Path

import pytest

from expo_ray.errors import ConfigError
from expo_ray.lab.settings import LabSettings
from expo_ray.lab.studies.records import BASELINES, MODEL_CHOICES, STUDIES
from expo_ray.lab.studies.running import cells_of, models_of, run_study
from expo_ray.lab.studies.study import Model, Study, StudySettings, parse_seeds

LAB = LabSettings(seed=2)


def test_a_model_is_named_by_all_that_it_is_made_from() -> None:
    sft = Model(kind="sft")
    aligned = Model(kind="preference", parents=(sft,), settings={"preference_fraction": 0.2})
    others = [
        Model(kind="base"),
        sft,
        Model(kind="sft", variant="-b"),
        aligned,
        Model(kind="preference", parents=(sft,), settings={"preference_fraction": 0.4}),
        Model(kind="preference", parents=(Model(kind="base"),)),
        Model(kind="preference", parents=(sft,), options={"method": "ipo"}),
    ]
    assert len({model.digest(LAB) for model in others}) == len(others)
    assert sft.digest(LAB) != sft.digest(LabSettings(seed=3))
    same = Model(
        kind="preference", parents=(Model(kind="sft"),), settings={"preference_fraction": 0.2}
    )
    assert same.digest(LAB) == aligned.digest(LAB)


def test_names_do_not_change_with_settings_that_came_later() -> None:
    assert Model(kind="sft").digest(LAB) == "7780b022546b3fc7"


def test_a_setting_at_its_default_makes_the_same_model() -> None:
    default = Model(kind="preference", parents=(Model(kind="sft"),))
    said = Model(
        kind="preference", parents=(Model(kind="sft"),), settings={"preference_fraction": 0.1}
    )
    assert default.digest(LAB) == said.digest(LAB)


@pytest.mark.parametrize("study", STUDIES.values(), ids=lambda study: study.name)
def test_records_are_whole(study: Study) -> None:
    assert 0.0 in study.alphas
    assert list(study.alphas) == sorted(set(study.alphas))
    names = [arm.name for arm in study.arms]
    assert len(set(names)) == len(names)
    assert study.yardstick is None or study.yardstick in names
    for arm in study.arms:
        for model in models_of(arm):
            model.settings_in(LAB)  # unknown settings are refused
        assert arm.initial.digest(LAB) != arm.aligned.digest(LAB)


def test_an_alignment_step_starts_from_its_direct_parent() -> None:
    for study in STUDIES.values():
        for arm in study.arms:
            if arm.is_alignment_step:
                assert arm.aligned.parents[0] == arm.initial, arm.name


def test_parents_are_made_first() -> None:
    for study in STUDIES.values():
        for arm in study.arms:
            order = [model.digest(LAB) for model in models_of(arm)]
            for model in models_of(arm):
                for parent in model.parents:
                    assert order.index(parent.digest(LAB)) < order.index(model.digest(LAB))


def test_seeds_are_read_from_text_with_commas() -> None:
    assert parse_seeds("2,5") == (2, 5)
    with pytest.raises(ConfigError, match="seeds are whole numbers"):
        parse_seeds("2,x")


def test_settings_make_the_laboratory_of_a_seed() -> None:
    small, whole = StudySettings(small=True, num_prompts=40).lab(7), StudySettings().lab(7)
    assert small.seed == whole.seed == 7
    assert small.num_eval_prompts == 40
    assert small.num_sft_examples < whole.num_sft_examples
    assert small.num_preference_pairs < whole.num_preference_pairs


def test_a_merge_needs_its_command_before_any_work(tmp_path: Path) -> None:
    settings = StudySettings(cache=str(tmp_path / "cache"), mergekit="no-such-command")
    with pytest.raises(ConfigError, match="mergekit") as caught:
        run_study(BASELINES, settings)  # before any Ray is started
    assert caught.value.got == "no-such-command"
    assert not (tmp_path / "cache").exists()


def test_cells_come_a_whole_seed_after_the_other(tmp_path: Path) -> None:
    settings = StudySettings(seeds=(5, 6), cache=str(tmp_path))
    found = [(cell.seed, cell.arm.name) for cell in cells_of(MODEL_CHOICES, settings)]
    names = [arm.name for arm in MODEL_CHOICES.arms]
    assert found == [(seed, name) for seed in (5, 6) for name in names]
