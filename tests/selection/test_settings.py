from __future__ import annotations

import pytest
from pydantic import ValidationError

from expo_ray.selection import SelectionSettings


def test_settings_survive_a_recipe() -> None:
    settings = SelectionSettings(max_length_ratio=None, correction="bonferroni")
    assert SelectionSettings.model_validate_json(settings.model_dump_json()) == settings


@pytest.mark.parametrize(
    "bad",
    [
        {"confidence": 1.0},
        {"confidence": "0.95"},
        {"num_resamples": 10},
        {"max_error_rate": 1.5},
        {"min_gain": float("nan")},
        {"prefer": "luck"},
        {"rank_by": "all-judges", "strategy": "racing"},
        {"max_lenght_ratio": 2.0},
    ],
)
def test_wrong_settings_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        SelectionSettings.model_validate(bad)


def test_a_race_is_ordered_by_what_it_drops_by() -> None:
    assert SelectionSettings().rank_by == "all-judges"
    assert SelectionSettings(strategy="bracketing+racing").rank_by == "reward"


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in SelectionSettings.model_fields.values())
