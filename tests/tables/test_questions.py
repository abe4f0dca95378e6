"""The forms in which questions are published, and what contradicts itself."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expo_ray.errors import TableError
from expo_ray.tables import read_prompts
from expo_ray.tables.preferences import read_preferences
from expo_ray.tables.questions import _tell_once

TEXT = "Summarize the text."


@pytest.fixture(autouse=True)
def forget_notes() -> None:
    _tell_once.cache_clear()


def turn(role: str, content: object) -> dict[str, Any]:
    return {"role": role, "content": content}


def said(*pairs: tuple[str, str]) -> list[dict[str, Any]]:
    return [turn(role, content) for role, content in pairs]


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


ALPACA = said(("user", f"{TEXT}\nLong."))
LONGER = said(("user", "a"), ("assistant", "b"), ("user", "c"))
FORMS: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
    ({"instruction": TEXT, "input": "Long."}, ALPACA),
    ({"instruction": TEXT, "context": "Long.", "input": ""}, ALPACA),
    ({"prompt": TEXT, "input": "Long."}, ALPACA),
    ({"instruction": "", "input": "Long."}, said(("user", "Long."))),
    ({"instruction": TEXT, "input": None, "context": " "}, said(("user", TEXT))),
    ({"prompt": "q", "system": "s"}, said(("system", "s"), ("user", "q"))),
    ({"prompt": "c", "history": [["a", "b"]]}, LONGER),
    ({"messages": LONGER, "history": [["a", "b"]], "prompt": "c"}, LONGER),
    (
        {"messages": said(("system", "s"), ("user", "q")), "prompt": "q", "system_prompt": "s"},
        said(("system", "s"), ("user", "q")),
    ),
    # As UltraFeedback: the chat goes on to an answer.
    ({"prompt": "a", "messages": LONGER[:2]}, LONGER[:1]),
    (
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "a"},
                {"from": "gpt", "value": "b"},
            ]
        },
        said(("system", "s"), ("user", "a")),
    ),
    (
        {"messages": [turn("user", [{"type": "text", "text": t} for t in ("x", "y ")])]},
        said(("user", "xy ")),
    ),
    # Formatted already, beside what it was made of.
    ({"prompt": f"{TEXT}\nLong.", "instruction": TEXT, "input": "Long."}, ALPACA),
]


@pytest.mark.parametrize("number", range(len(FORMS)))
def test_columns_of_a_question_are_joined(tmp_path: Path, number: int) -> None:
    row, expected = FORMS[number]
    paths = [write(tmp_path / "a.jsonl", row), tmp_path / "a.json", tmp_path / "a.parquet"]
    paths[1].write_text(json.dumps([row]))
    pq.write_table(pa.Table.from_pylist([row]), paths[2])
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}
    texts = {k: "" if v == "null" else v for k, v in texts.items()}
    line = ",".join('"' + text.replace('"', '""') + '"' for text in texts.values())
    paths.append(tmp_path / "a.csv")
    paths[3].write_text(f"{','.join(texts)}\n{line}\n")
    for path in paths:
        [prompt] = read_prompts(path)
        assert list(prompt.messages) == expected, path


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "a", "instruction": "b"}, "instruction and prompt"),
        ({"prompt": "a", "messages": said(("user", "b"))}, "prompt and messages"),
        ({"prompt": "b", "messages": LONGER}, "prompt and messages"),
        ({"messages": said(("system", "s"), ("user", "q")), "system": "t"}, "system"),
        ({"prompt": "q", "system": "s", "system_prompt": "t"}, "system"),
        ({"instruction": "q", "input": "x", "context": "y"}, "input and context"),
        ({"messages": LONGER, "history": [["x", "y"]]}, "history"),
        ({"prompt": "q", "history": "earlier"}, "history"),
        ({"prompt": "q", "history": [["x", "y", "z"]]}, "pair"),
        ({"instruction": "q", "input": {"a": 1}}, "does not hold text"),
        ({"messages": [turn("user", [{"type": "image_url", "image_url": "x"}])]}, "image_url"),
        ({"messages": [{**turn("user", "q"), "tool_calls": [{"id": "1"}]}]}, "tool_calls"),
        ({"conversations": [{"from": "observation", "value": "x"}]}, "observation"),
        ({"prompt": "cut \ud83d"}, r"\\ud83d at character 4"),
        ({"prompt": "q", "system": "\udc00"}, "surrogate"),
        ({"prompt": "q", "prompt_id": "\udc00"}, "surrogate"),
    ],
)
def test_contradictions_and_what_is_no_text_are_refused(
    tmp_path: Path, row: dict[str, Any], words: str
) -> None:
    with pytest.raises(TableError, match=words) as caught:
        read_prompts(write(tmp_path / "a.jsonl", {"prompt": "fine"}, row))
    assert "a.jsonl:2" in str(caught.value.where)


def test_a_named_column_is_the_prompt_whatever_stands_beside_it(tmp_path: Path) -> None:
    row = {"question": "q", "prompt": "p", "messages": LONGER, "context": "x", "system": "s"}
    [prompt] = read_prompts(write(tmp_path / "a.jsonl", row), columns={"prompt": "question"})
    assert list(prompt.messages) == said(("system", "s"), ("user", "q\nx"))
    # Input completes the instruction that it stands beside.
    row = {"text": "all of it", "instruction": "all", "input": "of it"}
    [prompt] = read_prompts(write(tmp_path / "b.jsonl", row), columns={"prompt": "text"})
    assert list(prompt.messages) == said(("user", "all of it"))
    [prompt] = read_prompts(write(tmp_path / "c.jsonl", row), columns={"prompt": "input"})
    assert list(prompt.messages) == said(("user", "of it"))


def test_columns_that_are_not_read_are_named_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [
        {"prompt": "a", "document": "long", "answers": ["x"], "score": 3, "prompt_id": f"{i}"}
        for i in range(3)
    ]
    path = write(tmp_path / "a.jsonl", *rows, {"messages": [{**turn("user", "q"), "name": "Bo"}]})
    with caplog.at_level(logging.WARNING):
        read_prompts(path)
        read_prompts(path)
    [record] = caplog.records
    assert record.message.endswith("not read: answers, document, messages[].name")


def test_a_chat_that_goes_on_after_its_prompt_is_asked_the_prompt(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As UltraChat is published."""
    chat = said(("user", TEXT), ("assistant", "Short."), ("user", "And?"), ("assistant", "No."))
    file = write(tmp_path / "p.jsonl", {"prompt": TEXT, "messages": chat})
    with caplog.at_level(logging.WARNING):
        (prompt,) = read_prompts(file)
    assert list(prompt.messages) == said(("user", TEXT))
    assert "messages after the prompt" in caplog.text
    other = write(tmp_path / "o.jsonl", {"prompt": "Other", "messages": chat})
    with pytest.raises(TableError, match="say two different things"):
        read_prompts(other)


def test_a_prompt_may_be_said_in_the_chat_in_other_white_space_or_by_its_system(
    tmp_path: Path,
) -> None:
    answered = said(("user", TEXT), ("assistant", "Short."))
    later = [*answered, *said(("user", "And?"), ("assistant", "No."))]
    spoken = said(("system", "Be a pirate."), ("user", TEXT), ("assistant", "Arr."))
    rows = (
        ({"prompt": f"{TEXT} \n", "messages": answered}, said(("user", f"{TEXT} \n"))),
        ({"prompt": "And?", "messages": later}, later[:3]),
        ({"prompt": "Be a pirate.", "messages": spoken}, spoken[:2]),  # as no_robots has it
    )
    for row, wanted in rows:
        (prompt,) = read_prompts(write(tmp_path / "p.jsonl", row))
        assert list(prompt.messages) == wanted
    answer = [turn("assistant", "Arr.")]
    preference = {"prompt": "Be a pirate.", "chosen": spoken, "rejected": [*spoken[:2], *answer]}
    (read,) = read_preferences(write(tmp_path / "q.jsonl", preference))
    assert list(read.prompt) == spoken[:2]


def test_a_column_named_as_the_prompt_keeps_its_details_and_passes_others_by(
    tmp_path: Path,
) -> None:
    alpaca = {"instruction": TEXT, "input": "Long.", "prompt": "### Instruction: ..."}
    (prompt,) = read_prompts(write(tmp_path / "a.jsonl", alpaca), columns={"prompt": "instruction"})
    assert list(prompt.messages) == ALPACA
    hotpot = {"question": TEXT, "context": {"title": ["x"]}, "history": "none", "system": 1}
    (prompt,) = read_prompts(write(tmp_path / "h.jsonl", hotpot), columns={"prompt": "question"})
    assert list(prompt.messages) == said(("user", TEXT))
    chat = {"messages": said(("user", TEXT), ("assistant", "Short."))}
    (prompt,) = read_prompts(write(tmp_path / "c.jsonl", chat), columns={"prompt": "messages"})
    assert list(prompt.messages) == said(("user", TEXT))


def test_the_prompt_of_a_preference_may_have_every_form(tmp_path: Path) -> None:
    told = said(("user", "q"), ("assistant", "good"))
    path = write(
        tmp_path / "p.jsonl",
        {"instruction": "q", "input": "x", "system": "s", "chosen": "good", "rejected": "bad"},
        {
            "system": "s",
            "prompt": "q",
            "chosen": told,
            "rejected": [*told[:1], turn("assistant", "bad")],
        },
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "good"},
            "rejected": {"from": "gpt", "value": "bad"},
        },
        {
            "prompt": "a",
            "chosen": [*LONGER, turn("assistant", "good")],
            "rejected": [*LONGER, turn("assistant", "bad")],
        },
    )
    alpaca, chat, sharegpt, longer = read_preferences(path)
    assert list(alpaca.prompt) == said(("system", "s"), ("user", "q\nx"))
    assert list(chat.prompt) == said(("system", "s"), ("user", "q"))
    assert list(sharegpt.prompt) == said(("user", "q"))
    assert list(longer.prompt) == LONGER
    assert all((p.chosen, p.rejected) == (("good",), ("bad",)) for p in (alpaca, chat, sharegpt))


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "other", "chosen": said(("user", "q"), ("assistant", "x"))},
        {"system": "t", "chosen": said(("system", "s"), ("user", "q"), ("assistant", "x"))},
    ],
)
def test_a_prompt_against_the_chat_of_its_answer_is_refused(
    tmp_path: Path, row: dict[str, Any]
) -> None:
    row["rejected"] = [*row["chosen"][:-1], turn("assistant", "y")]
    with pytest.raises(TableError, match="contradicts"):
        read_preferences(write(tmp_path / "p.jsonl", row))


def test_arrow_maps_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    kind = pa.list_(pa.map_(pa.string(), pa.string()))
    chat = [[[("role", "user"), ("content", "q")]]]
    pq.write_table(pa.table({"messages": pa.array(chat, kind)}), tmp_path / "map.parquet")
    [prompt] = read_prompts(tmp_path / "map.parquet")
    assert list(prompt.messages) == said(("user", "q"))
    raw = pa.array([b"fine", b"\xff\xfe", b"fine"])
    column = pa.StringArray.from_buffers(3, *raw.buffers()[1:])
    pq.write_table(pa.table({"prompt": column}), tmp_path / "raw.parquet")
    with pytest.raises(TableError) as caught:
        read_prompts(tmp_path / "raw.parquet")
    assert str(caught.value.where).endswith("raw.parquet row 1")


def test_deep_json_and_endless_integers_are_refused_with_their_line(tmp_path: Path) -> None:
    for text in ('{"prompt_id": ' + "9" * 5000 + "}", '{"a":' * 200 + "1" + "}" * 200):
        path = tmp_path / "a.jsonl"
        path.write_text('{"prompt": "x"}\n' + text)
        with pytest.raises(TableError, match="malformed JSON") as caught:
            read_prompts(path)
        assert str(caught.value.where).endswith("a.jsonl:2")
        path.with_suffix(".json").write_text(text)
        with pytest.raises(TableError, match="malformed JSON"):
            read_prompts(path.with_suffix(".json"))


def test_a_nul_character_is_text_like_any_other(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("prompt\na\0b\n")
    paths = [tmp_path / "a.csv", write(tmp_path / "a.jsonl", {"prompt": "a\0b"})]
    assert [read_prompts(p)[0].messages[0]["content"] for p in paths] == ["a\0b"] * 2
