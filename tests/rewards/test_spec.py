import pytest

from expo_ray.errors import ConfigError
from expo_ray.rewards import RewardModelSpec


def test_three_kinds() -> None:
    checkpoint = RewardModelSpec.parse("/models/RM-7B/")
    assert (checkpoint.kind.name, checkpoint.model, checkpoint.short_name) == (
        "classifier",
        "/models/RM-7B/",
        "RM-7B",
    )
    implicit = RewardModelSpec.parse("implicit:beta=0.1")
    assert (implicit.kind.name, implicit.arguments, implicit.short_name) == (
        "implicit",
        {"beta": 0.1},
        "implicit",
    )
    judge = RewardModelSpec.parse("judge:http://127.0.0.1:8000/v1/#org/big judge")
    assert (judge.kind.name, judge.arguments["url"], judge.model) == (
        "judge",
        "http://127.0.0.1:8000/v1",
        "org/big judge",
    )
    assert judge.short_name == "big-judge"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "implicit:",
        "implicit",
        "implicit:beta=",
        "implicit:beta=0",
        "implicit:beta=1e999",
        "implicit:beta=e",
        "judge:",
        "judge:http://host/v1",
        "judge:http://host/v1#",
        "judge:ftp://host/v1#m",
        "judge:http://user:secret@host/v1#m",
    ],
)
def test_wrong_specs_are_refused_without_repeating_secrets(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RewardModelSpec.parse(text)
    assert "secret" not in str(caught.value)


def test_a_folder_may_be_called_like_a_kind() -> None:
    assert RewardModelSpec.parse("judge").kind.name == "classifier"
