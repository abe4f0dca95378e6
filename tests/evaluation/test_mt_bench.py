"""MT-Bench: two turns through replicas, a judge behind a real service, FastChat's files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from expo_ray.cli.main import app
from expo_ray.errors import ConfigError, EvaluationError, TableError
from expo_ray.evaluation import mt_bench_answers, mt_bench_scores
from expo_ray.evaluation.mt_bench_files import read_questions
from expo_ray.evaluation.mt_bench_judging import rating_of
from expo_ray.tables import read_table
from tests.docs.workbench import write_mt_bench
from tests.published_data import find_data
from tests.rating_judge import Judge, rating_judge
from tests.samples import write_lines
from tests.thinking_model import save_speaker


@pytest.fixture
def judge() -> Iterator[str]:
    with rating_judge() as port:
        yield f"judge:http://127.0.0.1:{port}/v1#big"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_mt_bench(tmp_path)
    return tmp_path


def scores(folder: Path, judge: str, **changes: Any) -> dict[str, Any]:
    given = {
        "questions": folder / "question.jsonl",
        "judge": judge,
        "judge_prompts": folder / "judge_prompts.jsonl",
        "output": folder / "judgements.jsonl",
        **changes,
    }
    return mt_bench_scores(given.pop("answers", folder / "mt-bench.jsonl"), **given)


def test_a_judge_rates_both_turns(folder: Path, judge: str) -> None:
    result = scores(folder, judge)
    assert result["first_turn"]["mean"] == 8
    assert result["second_turn"]["mean"] == 6
    assert result["average"]["mean"] == 7
    assert {name: row["mean"] for name, row in result["categories"].items()} == {
        "writing": 7,
        "stem": 7,
    }
    lines = [json.loads(line) for line in (folder / "judgements.jsonl").read_text().splitlines()]
    # What FastChat's show_result reads: model, turn, score.
    assert [(x["question_id"], x["turn"], x["score"]) for x in lines] == [
        (81, 1, 8.0),
        (81, 2, 6.0),
        (82, 1, 8.0),
        (82, 2, 6.0),
    ]
    assert lines[1]["judge"] == ["big", "single-v1-multi-turn"]
    assert {body["temperature"] for body in Judge.asked} == {0}
    # A rerun asks nothing again; braces in an answer are no part of a template.
    num_asked = len(Judge.asked)
    assert scores(folder, judge) == result
    assert len(Judge.asked) == num_asked == 4
    assert any("{this}" in body["messages"][1]["content"] for body in Judge.asked)


def test_without_a_rating_it_is_asked_again_and_then_null(folder: Path, judge: str) -> None:
    answers = folder / "mt-bench.jsonl"
    answers.write_text(answers.read_text().replace("Then {this}.", "S-I-L-E-N-T", 1))
    result = scores(folder, judge)
    assert (result["num_judged"], result["num_unrated"]) == (3, 1)
    asked = [b for b in Judge.asked if "S-I-L-E-N-T" in b["messages"][1]["content"]]
    assert len(asked) == 2
    assert result["second_turn"]["num_questions"] == 1
    rows = read_table(folder / "judgements.judgements.parquet").to_pylist()
    assert [row["score"] for row in rows] == [8.0, None, 8.0, 6.0]
    assert '"score": -1' in (folder / "judgements.jsonl").read_text()


def test_other_answers_need_another_output(folder: Path, judge: str) -> None:
    scores(folder, judge)
    answers = folder / "mt-bench.jsonl"
    before = answers.read_text()
    answers.write_text(before.replace("Because.", "Perhaps."))
    with pytest.raises(ConfigError, match="other settings"):
        scores(folder, judge)
    answers.write_text(before)
    prompts = folder / "judge_prompts.jsonl"
    prompts.write_text(prompts.read_text().replace("You judge.", "You judge mildly."))
    with pytest.raises(ConfigError, match="other settings"):
        scores(folder, judge)


def test_references_are_asked_for_and_seen(folder: Path, judge: str) -> None:
    questions = folder / "question.jsonl"
    questions.write_text(questions.read_text().replace('"stem"', '"math"'))
    with pytest.raises(TableError, match="no reference answer"):
        scores(folder, judge)
    prompts = folder / "judge_prompts.jsonl"
    prompts.write_text(prompts.read_text().replace("{question}", "{question} {ref_answer_1}"))
    with pytest.raises(TableError, match="asks for an unknown text"):
        scores(folder, judge, references=folder / "mt-bench.jsonl")  # single-v1 has no reference
    lines = [json.loads(line) for line in prompts.read_text().splitlines()]
    for line in lines:
        if "math" not in line["name"]:
            line["prompt_template"] = line["prompt_template"].replace(" {ref_answer_1}", "")
    write_lines(prompts, lines)
    scores(folder, judge, references=folder / "mt-bench.jsonl")
    assert any(b["messages"][1]["content"] == "Why? Because. Because." for b in Judge.asked)


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Rating: [[7]]", 7.0),
        ("[[7.5]] and [[2]]", 7.5),
        ("Rating: [9]", 9.0),
        ("Rating: [[0]]", None),
        ("[[11]]", None),
        ("seven", None),
    ],
)
def test_ratings(text: str, rating: float | None) -> None:
    assert rating_of(text) == rating


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("question.jsonl", '"writing"', '"cooking"', "no category"),
        ("question.jsonl", '"question_id": 82', '"question_id": 81', "there twice"),
        ("question.jsonl", '"question_id": 82', '"question_id": "82"', "no question_id"),
        ("question.jsonl", '["Why?", "And then?"]', '["Why?"]', "two turns"),
        ("mt-bench.jsonl", '"question_id": 82', '"question_id": 83', "not those"),
        ("mt-bench.jsonl", '"choices"', '"choice"', "no choices"),
        ("judge_prompts.jsonl", "single-math-v1-multi-turn", "pair-v2", "lacks judge prompts"),
        ("judge_prompts.jsonl", '"system_prompt"', '"system"', "malformed"),
    ],
)
def test_wrong_files_are_refused(
    folder: Path, judge: str, file: str, old: str, new: str, message: str
) -> None:
    path = folder / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(TableError, match=message):
        scores(folder, judge)
    assert not Judge.asked


def test_answers_of_two_models_and_a_judge_that_is_none(folder: Path, judge: str) -> None:
    path = folder / "mt-bench.jsonl"
    path.write_text(path.read_text().replace('"dpo"', '"sft"', 1))
    with pytest.raises(TableError, match="several models"):
        scores(folder, judge)
    with pytest.raises(ConfigError, match="no judge"):
        scores(folder, "implicit:beta=0.1")


def test_a_judge_that_is_not_there(folder: Path, judge: str) -> None:
    path = folder / "mt-bench.jsonl"
    path.write_text(re.sub("Because|Then", "S-I-L-E-N-T", path.read_text()))
    with pytest.raises(EvaluationError, match="rated no answer"):
        scores(folder, judge)


def test_the_published_files_are_read(tmp_path: Path, judge: str) -> None:
    data = find_data()
    if data is None or not (data / "mt_bench").is_dir():
        pytest.skip("MT-Bench's published files are not here")
    folder = data / "mt_bench"
    result = mt_bench_scores(
        folder / "model_answer" / "tulu-2-dpo-7b-ExPO.jsonl",
        questions=folder / "question.jsonl",
        judge=judge,
        judge_prompts=folder / "judge_prompts.jsonl",
        references=folder / "reference_answer_gpt-4.jsonl",
        output=tmp_path / "judgements.jsonl",
    )
    assert (result["num_judged"], result["num_unrated"]) == (160, 0)
    assert len(result["categories"]) == 8
    assert len(read_questions(folder / "question.jsonl")) == 80


def test_answers_come_from_replicas_by_turn_and_temperature(
    folder: Path, pico_pair: tuple[Path, Path], ray_cluster: str
) -> None:
    initial, aligned = map(str, pico_pair)
    made = mt_bench_answers(
        aligned,
        initial=initial,
        alpha=0.5,
        questions=folder / "question.jsonl",
        output=folder / "answers.jsonl",
        max_tokens=6,
        engine="transformers",
    )
    lines = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert [line["question_id"] for line in lines] == [81, 82]
    assert lines[0]["model_id"] == made["model"]
    assert lines[0]["expo_ray"]["weights_digest"] == made["weights_digest"]
    tables = sorted(path.name for path in (folder / "answers.jsonl.turns").glob("*.parquet"))
    assert tables == [f"turn-{turn}-temperature-{t}.parquet" for turn in (1, 2) for t in (0.1, 0.7)]
    second = read_table(folder / "answers.jsonl.turns" / tables[-1]).to_pylist()[0]
    roles = [message["role"] for message in second["messages"]]
    assert roles == ["user", "assistant", "user"]
    assert second["messages"][1]["content"] == lines[0]["choices"][0]["turns"][0]


def test_the_second_turn_follows_what_counts_as_an_answer(folder: Path, ray_cluster: str) -> None:
    model = save_speaker(folder / "thinker", "w</think>Yes.")
    for reasoning, text in (("think", "Yes."), ("off", "w</think>Yes.")):
        output = folder / f"{reasoning}.jsonl"
        made = mt_bench_answers(
            str(model),
            questions=folder / "question.jsonl",
            output=output,
            max_tokens=40,
            reasoning=reasoning,
            engine="transformers",
        )
        assert json.loads(made["sampling"])["reasoning"] == reasoning
        lines = [json.loads(line) for line in output.read_text().splitlines()]
        assert [line["choices"][0]["turns"] for line in lines] == [[text, text]] * 2
        assert {line["expo_ray"]["sampling"] for line in lines} == {made["sampling"]}
        for table in (folder / f"{reasoning}.jsonl.turns").glob("turn-2-*.parquet"):
            for row in read_table(table).to_pylist():
                assert row["messages"][1]["content"] == text
    with pytest.raises(ConfigError, match="other settings"):
        mt_bench_answers(
            str(model),
            questions=folder / "question.jsonl",
            output=folder / "off.jsonl",
            max_tokens=40,
            engine="transformers",
        )


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (("mt-bench", "--answers", "a", "--judge", "judge:http://h/v1#m", "--alpha", "1"), "alpha"),
        (("mt-bench", "--answers", "a", "--judge", "j", "--engine", "vllm"), "engine"),
        (("mt-bench", "--answers", "a", "--judge", "j", "--reasoning", "off"), "reasoning"),
        (("mt-bench", "model", "--references", "r"), "references"),
        (("alpaca-eval", "--annotations", "a", "--seed", "1"), "seed"),
    ],
)
def test_flags_of_another_use_are_refused(words: tuple[str, ...], flag: str) -> None:
    output = () if words[0] == "alpaca-eval" else ("--output", "o")
    with pytest.raises(ConfigError, match="does not use this") as caught:
        CliRunner().invoke(app, ["evaluate", *words, *output], catch_exceptions=False)
    assert str(caught.value.where) == f"--{flag}"
