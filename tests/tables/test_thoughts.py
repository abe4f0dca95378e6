"""What is thought and what is answered, as models and services really write it."""

from __future__ import annotations

import pytest

from expo_ray.errors import ConfigError
from expo_ray.tables.thoughts import AUTO, TAGS, Reasoning, opened_by, tags_in

THINK = TAGS[0]

RESPONSES = [
    ("<think>\nTwice two.\n</think>\n\nFour.", "Twice two.", "Four."),
    ("<think>\n\n</think>\n\nFour.", None, "Four."),  # thinking was switched off
    ("  <think>a</think> <think>b</think> c", "a\n\nb", "c"),
    ("<think>a<think>b</think>c</think>d", "a<think>b</think>c", "d"),
    ("<think>the tag <think> opens</think>Yes.", "the tag <think> opens", "Yes."),
    ("<think>say `</think>` first</think>Yes.", "say `</think>` first", "Yes."),
    ("<think>a</think>A thought ends with </think>.", "a", "A thought ends with </think>."),
    ("<think>a</think>Write <think>b</think>.", "a", "Write <think>b</think>."),
    ("The tags are <think> and </think>.", None, "The tags are <think> and </think>."),
    ("</think>", None, "</think>"),
    ("", None, ""),
    ("<think>\na\n</think>\n<answer>\n4\n</answer>", "a", "4"),
    ("[THINK]a[/THINK]b", "a", "b"),
    ("<seed:think>a</seed:think>b", "a", "b"),
    ("<thought>\na\n</thought>\n\nb", "a", "b"),
    ("Here is my thought process: a Here's my response: b", "a", "b"),
    ("Here is my thought process: 6*7. So 42.", None, "Here is my thought process: 6*7. So 42."),
    ('<think>The city is "Paris"</think>"Paris"', 'The city is "Paris"', '"Paris"'),
    ("<think>```x```</think>```python\n4\n```", "```x```", "```python\n4\n```"),
    ("<|START_THINKING|>a<|END_THINKING|><|START_RESPONSE|>b<|END_RESPONSE|>", "a", "b"),
    ("<|channel>thought\na<channel|>b", "a", "b"),
    (
        "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b",
        "a",
        "b",
    ),
    ("Here are my reasoning steps:\na\n[BEGIN FINAL RESPONSE]\nb\n[END FINAL RESPONSE]", "a", "b"),
    ("<|begin_of_thought|>a<|end_of_thought|>\n<|begin_of_solution|>b", "a", "b"),
]


@pytest.mark.parametrize(("text", "thought", "answer"), RESPONSES)
def test_a_thought_stands_before_its_answer(text: str, thought: str | None, answer: str) -> None:
    made = AUTO.split(text)
    assert (made.thought, made.answer, made.is_closed) == (thought, answer, True)
    assert AUTO.answer(made.answer) == made.answer, "an answer stays what it is"


@pytest.mark.parametrize("tag", TAGS, ids=lambda tag: tag.name)
def test_every_tag_is_recognised_and_may_be_left_open(tag: object) -> None:
    assert isinstance(tag, type(THINK))
    for opening in tag.opens:
        for closing in tag.closes:
            made = AUTO.split(f"{opening}\nwell\n{closing}\n\nYes.")
            assert (made.thought, made.answer) == ("well", "Yes.")
        cut = AUTO.split(f"{opening}\nwell, that", known=[tag])
        assert (cut.thought, cut.answer, cut.is_closed) == ("well, that", "", False)
        assert opened_by(f"<user>hi<assistant>{opening}\n") == tag
        assert tag in tags_in("{{ messages }}" + opening)
        assert Reasoning.parse(opening).tag == tag
    assert str(Reasoning.parse(tag.name)) == tag.name


def test_a_template_opens_the_thought() -> None:
    made = AUTO.split("Twice two.\n</think>\n\nFour.", inside=THINK)
    assert (made.thought, made.answer) == ("Twice two.", "Four.")
    assert AUTO.split("Twice two", inside=THINK).is_closed is False
    again = AUTO.split("<think>Twice two.</think>Four.", inside=THINK)
    assert again.answer == "Four.", "some write the tag once more"
    text = "Twice two.</think>Four."
    assert AUTO.split(text).thought is None, "nothing says that this tag means anything"
    assert AUTO.split(text, known=[THINK]).answer == "Four."
    assert Reasoning.parse("think").split(text).answer == "Four."
    assert AUTO.split("Four.", known=[THINK]).answer == "Four."
    assert opened_by("<think>\n\n</think>\n\n") is None, "thinking is switched off"


def test_settings() -> None:
    text = "<think>a</think>b"
    assert Reasoning.parse("off").split(text).answer == text
    assert Reasoning.parse("off").split("a</think>b", inside=THINK).thought is None
    assert Reasoning.parse("magistral").split(text).answer == text, "another tag was named"
    assert Reasoning.parse("<plan>").answer("<plan>a</plan>b") == "b"
    assert Reasoning.parse("((( )))").answer("((( a ))) b") == "b"
    for wrong in ("", "thnik", "<a", "a b c", "<a> <a>", "</think>"):
        with pytest.raises(ConfigError, match="no such mark of a thought"):
            Reasoning.parse(wrong)


def test_messages_of_services() -> None:
    part = {"type": "thinking", "thinking": [{"type": "text", "text": "a"}]}
    for message in (
        {"reasoning_content": "a", "content": "b"},
        {"reasoning": "a", "reasoning_content": "a", "content": "b"},
        {"content": "<think>a</think>b", "reasoning_content": None},
        {"content": [part, {"type": "text", "text": "b"}]},
    ):
        made = AUTO.split_message(message)
        assert (made.thought, made.answer, made.is_closed) == ("a", "b", True)
    cut = AUTO.split_message({"reasoning_content": "a", "content": None})
    assert (cut.answer, cut.is_closed) == ("", False)
    assert AUTO.split_message({"content": None}).thought is None


def test_earlier_turns_lose_their_thoughts_and_users_keep_theirs() -> None:
    chat = [
        {"role": "user", "content": "<think>mine</think>?"},
        {"role": "assistant", "content": "<think>a</think>b"},
        {"role": "user", "content": "more"},
    ]
    kept = AUTO.without_thoughts(chat)  # type: ignore[arg-type]
    assert [turn["content"] for turn in kept] == ["<think>mine</think>?", "b", "more"]


def test_long_texts_take_no_longer_than_they_are() -> None:
    """Work that grew with the square of the length would run into the limit on tests."""
    unit = "<think> so `</think>` "
    assert AUTO.split(unit * 20_000).is_closed is False
    assert AUTO.split("<think>a</think>" * 20_000 + "b").answer == "b"
    assert AUTO.split("<think>a</think>" + "<answer>" * 20_000).thought == "a"
