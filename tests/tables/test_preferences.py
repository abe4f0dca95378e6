import json
from pathlib import Path

import pytest

from expo_ray.errors import TableError
from expo_ray.tables.preferences import Preference, read_preferences


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_every_published_form_is_read(tmp_path: Path) -> None:
    conversation = [turn("user", "q"), turn("assistant", "a"), turn("user", "more")]
    path = write(
        tmp_path / "p.jsonl",
        {"id": 7, "subset": "hep-cpp", "prompt": "q", "chosen": "good", "rejected": "bad"},
        {"prompt": "q", "chosen": ["one", "two"], "rejected": ["three"], "subset": "Ties"},
        {
            "prompt": "q",
            "chosen": [turn("user", "q"), turn("assistant", "good")],
            "rejected": [turn("user", "q"), turn("assistant", "bad")],
        },
        {
            "chosen": [*conversation, turn("assistant", "good")],
            "rejected": [*conversation, turn("assistant", "bad")],
        },
        {"prompt": conversation, "chosen": [turn("assistant", "g")], "rejected": "bad"},
    )
    plain, several, whole, multi, tail = read_preferences(path)
    assert plain == Preference(
        pair_id="7",
        subset="hep-cpp",
        prompt=({"role": "user", "content": "q"},),
        chosen=("good",),
        rejected=("bad",),
    )
    assert (several.chosen, several.rejected, several.subset) == (
        ("one", "two"),
        ("three",),
        "Ties",
    )
    assert (whole.prompt, whole.chosen, whole.subset) == (plain.prompt, ("good",), "all")
    assert (list(multi.prompt), multi.rejected) == (conversation, ("bad",))
    assert (list(tail.prompt), tail.chosen) == (conversation, ("g",))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "chosen": "good"}, "no rejected"),
        ({"chosen": "good", "rejected": "bad"}, "no prompt"),
        ({"prompt": "q", "chosen": [turn("user", "q")], "rejected": "bad"}, "assistant's"),
        ({"prompt": "q", "chosen": [{"role": "user"}], "rejected": "bad"}, "malformed"),
        (
            {"prompt": "q", "chosen": [turn("user", "x"), turn("assistant", "y")], "rejected": "b"},
            "contradicts the chat",
        ),
        (["q"], "not an object"),
    ],
)
def test_malformed_rows_are_named(tmp_path: Path, row: object, message: str) -> None:
    fine = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    with pytest.raises(TableError, match=message) as caught:
        read_preferences(write(tmp_path / "p.jsonl", fine, row))
    assert "p.jsonl:2" in str(caught.value.where)
