"""Thoughts on their way from a model to its rewards: the tables hold them apart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from expo_ray.errors import ConfigError
from expo_ray.rewards.pretrained import ChatTokenizer
from expo_ray.serving import GeneratorReplicas, ModelSource, RewardReplicas, SamplingParams
from expo_ray.serving.engines.interface import Generated, Row
from expo_ray.serving.engines.transformers_engine import TransformersEngine
from expo_ray.serving.generator import Generator
from expo_ray.serving.loaded import ChatRow
from expo_ray.serving.reward_rows import chat_of, read_references
from expo_ray.serving.thought_reader import ThoughtReader
from expo_ray.tables import RESPONSES_SCHEMA, Message, Prompt, read_table
from expo_ray.tables.thoughts import AUTO, Reasoning
from tests.pico import CHAT_TEMPLATE, pico_tokenizer
from tests.serving.test_reward_replicas import response_rows, write
from tests.thinking_model import PREFILLED, save_speaker

GREEDY = SamplingParams(temperature=0, max_tokens=20)
ASKED = (Message(role="user", content="Well?"),)


def answered(model: Path, reasoning: Reasoning, *chats: tuple[Message, ...]) -> list[Generated]:
    """What a replica of the transformers engine returns."""
    rows = [ChatRow(messages=c, params=GREEDY, seed=1, reasoning=reasoning) for c in chats]
    replica = Generator(lambda: TransformersEngine(device="cpu"))
    return asyncio.run(replica.answer(ModelSource(model=str(model)), rows)).responses


def test_a_response_begins_inside_the_thought_that_its_template_opens(tmp_path: Path) -> None:
    model = save_speaker(tmp_path / "thinker", "w</think>Yes.")
    [made] = answered(model, AUTO, ASKED)
    assert (made.thought, made.text, made.finish_reason) == ("w", "Yes.", "stop")
    assert (made.completion_tokens, made.thought_tokens) == (14, 9)
    assert made.token_ids == (), "they stay in the replica"
    [named] = answered(model, Reasoning.parse("think"), ASKED)
    assert named == made
    for setting in ("off", "magistral"):
        [whole] = answered(model, Reasoning.parse(setting), ASKED)
        assert (whole.text, whole.thought, whole.thought_tokens) == ("w</think>Yes.", None, 0)


def test_a_thought_that_never_ends_is_no_answer(tmp_path: Path) -> None:
    model = save_speaker(tmp_path / "endless", "worldw")
    [made] = answered(model, AUTO, ASKED)
    assert (made.text, made.finish_reason) == ("", "length")
    assert made.thought == "worldworldworldworld"
    assert made.completion_tokens == made.thought_tokens == 20


def test_a_tag_at_the_end_of_a_question_opens_no_thought(tmp_path: Path) -> None:
    tokenizer = pico_tokenizer()
    row = Row(prompt_ids=[], params=GREEDY, seed=1, max_tokens=9)
    said = Generated(text="plain", finish_reason="stop", prompt_tokens=1, completion_tokens=5)
    question = (Message(role="user", content="What means <think>"),)
    bare = CHAT_TEMPLATE.replace("{{ eos_token }}", "").replace("<|assistant|>", "")
    for template, thought in ((bare, None), (CHAT_TEMPLATE, None), (PREFILLED, "plain")):
        tokenizer.chat_template = template
        chats = ChatTokenizer(tokenizer, where="here")
        row.prompt_ids = chats.ids(question, add_generation_prompt=True)
        made = ThoughtReader(tokenizer, chats).tell_apart(
            said, row, messages=question, reasoning=AUTO
        )
        assert made.thought == thought


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("<think>a</think>b", 16),
        ("<think>\u00e4\u2026</think>\n\nb", 20),
        ("b", 0),
        ("<think>a", 8),
    ],
)
def test_tokens_of_a_thought_are_counted_with_its_tags(text: str, tokens: int) -> None:
    tokenizer = pico_tokenizer()
    ids = tuple(tokenizer(text, add_special_tokens=False).input_ids)
    said = Generated(
        text=text,
        finish_reason="stop",
        prompt_tokens=1,
        completion_tokens=len(ids),
        token_ids=ids,
    )
    row = Row(prompt_ids=[1], params=GREEDY, seed=1, max_tokens=9)
    reader = ThoughtReader(tokenizer, ChatTokenizer(tokenizer, where="here"))
    made = reader.tell_apart(said, row, messages=ASKED, reasoning=AUTO)
    assert made.thought_tokens == tokens


def test_tables_hold_thoughts_apart_and_rewards_see_answers(
    ray_cluster: str, pico_reward_model: Path, tmp_path: Path
) -> None:
    model = save_speaker(tmp_path / "thinker", "w</think>Yes.")
    earlier = Message(role="assistant", content="<think>Hm.</think>Hello!")
    prompts = [
        Prompt(prompt_id="one", messages=ASKED),
        Prompt(prompt_id="two", messages=(*ASKED, earlier, *ASKED)),
    ]
    output = tmp_path / "answers.parquet"
    source = ModelSource(model=str(model))
    with GeneratorReplicas() as replicas:
        made = replicas.write_responses(source, prompts, output, sampling=GREEDY)
        others = GeneratorReplicas(reasoning=Reasoning.parse("off"))
        with pytest.raises(ConfigError, match="other settings"):
            others.write_responses(source, prompts, output, sampling=GREEDY)
    assert (made["reasoning"], made["num_thoughts"], made["num_unanswered"]) == ("auto", 2, 0)
    assert (made["thought_tokens"], made["completion_tokens"]) == (18, 28)
    rows = read_table(output, RESPONSES_SCHEMA).to_pylist()
    assert {(row["response"], row["thought"], row["thought_tokens"]) for row in rows} == {
        ("Yes.", "w", 9)
    }
    assert rows[1]["messages"][1]["content"] == "Hello!", "nor are earlier thoughts sent back"

    untold = {"response": "w</think>Yes.", "thought": None, "thought_tokens": None}
    raw = write(tmp_path / "raw.parquet", [{**row, **untold} for row in rows])
    rewards = {}
    with RewardReplicas(str(pico_reward_model), self_test=False) as rewarders:
        rewarders.write_rewards(output, tmp_path / "rewards.parquet")
        for setting in ("think", "off"):
            rewarders.reasoning = Reasoning.parse(setting)
            rewarders.write_rewards(raw, tmp_path / f"{setting}.parquet")
        for name in ("rewards", "think", "off"):
            rewards[name] = read_table(tmp_path / f"{name}.parquet")["reward"].to_pylist()
    assert rewards["rewards"] == rewards["think"] != rewards["off"]


def test_what_a_table_tells_apart_is_not_looked_for_again(tmp_path: Path) -> None:
    tag = Reasoning.parse("think")
    [row] = response_rows(1, text="It ends with </think>.")
    assert chat_of(row, tag)[-1]["content"] == "."
    assert chat_of({**row, "thought": "Hm."}, tag)[-1]["content"] == row["response"]
    file = write(tmp_path / "new.parquet", [{**row, "thought": "Hm."}])
    assert read_references(file, tag).responses == {("p0", 0): row["response"]}


def test_tables_from_before_thoughts_stay_readable(tmp_path: Path) -> None:
    rows = response_rows(3)
    whole = write(tmp_path / "new.parquet", rows)
    old = tmp_path / "old.parquet"
    pq.write_table(pq.read_table(whole).drop_columns(["thought", "thought_tokens"]), old)
    assert read_table(old, RESPONSES_SCHEMA).equals(read_table(whole, RESPONSES_SCHEMA))
    assert read_references(old, AUTO) == read_references(whole, AUTO)
