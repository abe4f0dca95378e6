from __future__ import annotations

import pytest

from expo_ray.cli.options import named_columns
from expo_ray.errors import ConfigError
from expo_ray.selection.guard_settings import FIELDS, parse_guards, parse_margins
from expo_ray.selection.settings import SelectionSettings
from expo_ray.serving.engines.options import parse_engine_args


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


@pytest.mark.parametrize("text", ["gsm", "gsm=", "=0.1", "gsm=0", "gsm=-1", "gsm=nan", "gsm=inf"])
def test_what_is_no_margin_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="a gate is set as NAME=MARGIN"):
        parse_margins([text])


def test_a_name_is_set_once() -> None:
    for parse, texts in (
        (parse_guards, ["length-ratio=1.5", "length-ratio=off"]),
        (parse_margins, ["gsm=0.02", "code=0.02", "gsm=0.05"]),
        (parse_engine_args, ["max_num_seqs=4", "--max-num-seqs=8"]),
        (lambda pairs: named_columns(None, pairs), ["answer=a", "answer=b"]),
    ):
        with pytest.raises(ConfigError, match="a name is set twice") as caught:
            parse(texts)
        assert caught.value.got == texts[-1]
