from __future__ import annotations

import pytest

from expo_ray.errors import ConfigError
from expo_ray.selection.guard_settings import FIELDS, parse_guards
from expo_ray.selection.settings import SelectionSettings


def test_guards_are_set_by_their_names() -> None:
    found = parse_guards(["length-ratio=2", "prompt-echo=off", "reward-model=significant"])
    assert found == {
        "max_length_ratio": 2.0,
        "max_echo_increase": None,
        "guard_agreement": "significant",
    }
    SelectionSettings.model_validate(found)


def test_every_guard_has_a_setting() -> None:
    assert set(FIELDS.values()) <= set(SelectionSettings.model_fields)


@pytest.mark.parametrize("text", ["length=2", "length-ratio", "length-ratio=", "=2"])
def test_what_is_no_guard_is_refused(text: str) -> None:
    with pytest.raises(ConfigError) as error:
        parse_guards([text])
    assert error.value.where == "guards="
    assert "length-ratio" in str(error.value.expected)
