"""AlpacaEval's own package asks a judge behind a real service, and fits its own model."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from expo_ray.cli.main import app
from expo_ray.errors import ConfigError, EvaluationError, TableError
from expo_ray.evaluation import alpaca_eval_judgements, alpaca_eval_metrics
from expo_ray.evaluation.alpaca_judging import ANNOTATOR
from tests.rating_judge import Judge, PreferringJudge, rating_judge

FUNCTIONS = "alpaca_eval_gpt4_turbo_fn"


@pytest.fixture
def judge() -> Iterator[str]:
    with rating_judge(PreferringJudge) as port:
        yield f"judge:http://127.0.0.1:{port}/v1#big"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three of four answers are longer than the baseline's."""
    texts = ["Pear, apple, plum.", "It rains cats and dogs.", "4", "A pear {this} and a plum."]
    write(tmp_path / "outputs.json", texts, "dpo", weights_digest="blake3:1", sampling="{}")
    write(tmp_path / "baseline.json", ["Pear.", "It rains.", "Four it is.", "A pear."], "gpt4")
    return tmp_path


def write(path: Path, texts: list[str], generator: str, **more: str) -> None:
    rows = [
        {"instruction": f"Say {i}.", "output": text, "generator": generator, **more}
        for i, text in enumerate(texts)
    ]
    path.write_text(json.dumps(rows))


def judged(folder: Path, judge: str, **changes: Any) -> Any:
    given = {
        "baseline": folder / "baseline.json",
        "judge": judge,
        "output": folder / "annotations.json",
        **changes,
    }
    return alpaca_eval_judgements(folder / "outputs.json", **given)


def test_the_official_package_reads_the_judge(folder: Path, judge: str) -> None:
    metrics = judged(folder, judge)
    # The order of the two is drawn for every instruction; the longer one has 3/4 in either place.
    assert metrics["win_rate"] == pytest.approx(100 * (3 * 0.75 + 0.25) / 4)
    assert (metrics["n_wins"], metrics["n_wins_base"], metrics["n_missing"]) == (3, 1, 0)
    assert metrics["judge"] == f"{ANNOTATOR} by big"
    assert (metrics["model"], metrics["baseline"]) == ("dpo", "gpt4")
    assert (metrics["weights_digest"], metrics["sampling"]) == ("blake3:1", "{}")
    rows = json.loads((folder / "annotations.json").read_text())
    assert [row["instruction"] for row in rows] == [f"Say {i}." for i in range(4)]
    assert rows[3]["output_2"] == "A pear {this} and a plum."
    assert {(b["model"], b["max_tokens"], b["top_logprobs"]) for b in Judge.asked} == {
        ("big", 1, 5)
    }
    assert {message["role"] for message in Judge.asked[0]["messages"]} == {"system", "user"}
    # A rerun asks nothing again.
    assert judged(folder, judge) == metrics
    assert len(Judge.asked) == 4


def test_what_the_judge_passes_over_has_no_preference(folder: Path, judge: str) -> None:
    write(folder / "outputs.json", ["S-I-L-E-N-T", "It rains cats and dogs.", "4", "A"], "dpo")
    metrics = judged(folder, judge)
    assert (metrics["n_total"], metrics["n_missing"]) == (3, 1)
    assert json.loads((folder / "annotations.json").read_text())[0]["preference"] is None


def test_other_answers_need_another_output(folder: Path, judge: str) -> None:
    judged(folder, judge)
    write(folder / "outputs.json", ["a", "b", "c", "d"], "expo", weights_digest="blake3:2")
    with pytest.raises(ConfigError, match="other settings"):
        judged(folder, judge)


def test_wrong_requests_ask_nothing(folder: Path, judge: str) -> None:
    with pytest.raises(ConfigError, match="no such annotator"):
        judged(folder, judge, annotator="alpaca_eval_gpt5")
    with pytest.raises(ConfigError, match="does not ask one chat model"):
        judged(folder, judge, annotator="alpaca_farm_greedy_gpt4")
    with pytest.raises(ConfigError, match="no judge"):
        judged(folder, "implicit:beta=0.1")
    write(folder / "baseline.json", ["Pear."], "gpt4")
    with pytest.raises(TableError, match="the same instructions"):
        judged(folder, judge)
    (folder / "baseline.json").write_text('[{"instruction": "Say 0."}]')
    with pytest.raises(TableError, match="lacks a text"):
        judged(folder, judge)
    assert Judge.asked == []


def test_a_judge_without_log_probabilities_is_told_so(folder: Path) -> None:
    with (
        rating_judge() as port,
        pytest.raises(EvaluationError, match="preferred no answer") as error,
    ):
        judged(folder, f"judge:http://127.0.0.1:{port}/v1#big")
    assert "log probabilities" in str(error.value.got)


def gamed(folder: Path, num: int) -> Path:
    """Write records of two models that were told to be short or long, of `num` instructions."""
    draw = random.Random(3)
    lines = ["model,index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline"]
    for model, shift in (("concise", 1.5), ("verbose", -1.5)):
        for i in range(num):
            delta = shift + draw.gauss(0, 0.3)
            share = 1 / (1 + math.exp(1.2 * math.tanh(delta)))
            lines.append(f"{model},{i},{share},{delta},{difficulty(i)},False")
    (folder / "df_gamed.csv").write_text("\n".join(lines) + "\n")
    return folder


def difficulty(i: int) -> float:
    return math.sin(i)


def test_length_control_takes_away_what_length_alone_won(tmp_path: Path) -> None:
    """A judge that is known: quality 0.4, and much for length; every output is longer."""
    num, quality, bias = 200, 0.4, 1.2
    draw = random.Random(1)
    lengths = [draw.randrange(20, 400) for _ in range(num)]
    spread = math.sqrt(sum((x - sum(lengths) / num) ** 2 for x in lengths) / (num - 1))
    rows = []
    for i, extra in enumerate(lengths):
        length = bias * math.tanh(extra / spread)
        share = 1 / (1 + math.exp(-(quality + 0.5 * difficulty(i) + length)))
        rows.append(
            {
                "instruction": f"Say {i}.",
                "output_1": "x" * 100,
                "output_2": "x" * (100 + extra),
                "generator_1": "gpt4",
                "generator_2": "dpo",
                "annotator": "known",
                "preference": 1 + share,
            }
        )
    path = tmp_path / "annotations.json"
    path.write_text(json.dumps(rows))
    metrics = alpaca_eval_metrics(path, length_control=gamed(tmp_path, num))
    fair = [1 / (1 + math.exp(-(quality + 0.5 * difficulty(i)))) for i in range(num)]
    assert metrics["length_controlled_win_rate"] == pytest.approx(100 * sum(fair) / num, abs=1.5)
    assert metrics["win_rate"] > metrics["length_controlled_win_rate"] + 10
    assert metrics["length_controlled_reason"] is None
    assert len(str(metrics["length_controlled_sha256"])) == 64


def test_without_its_file_there_is_no_length_control(folder: Path, judge: str) -> None:
    metrics = judged(folder, judge)
    assert metrics["length_controlled_win_rate"] is None
    assert "df_gamed.csv" in str(metrics["length_controlled_reason"])
    few = judged(folder, judge, length_control=gamed(folder, 5))
    assert few["length_controlled_reason"] == (
        "df_gamed.csv is of 5 instructions, the annotations of 4"
    )
    (folder / "df_gamed.csv").write_text("model,index\n")
    with pytest.raises(TableError, match="not AlpacaEval's"):
        judged(folder, judge, length_control=folder)
    with pytest.raises(TableError, match=r"there is no df_gamed\.csv"):
        judged(folder, judge, length_control=folder / "none")


def test_the_command_judges_and_refuses_flags_of_its_other_uses(folder: Path, judge: str) -> None:
    command = [
        "evaluate",
        "alpaca-eval",
        "--answers",
        str(folder / "outputs.json"),
        "--judge",
        judge,
    ]
    command += ["--baseline", str(folder / "baseline.json")]
    command += ["--output", str(folder / "annotations.json"), "--json"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["n_wins"] == 3
    for more in (["--seed", "3"], ["--prompts", "p"]):
        refused = CliRunner().invoke(app, [*command, *more])
        assert isinstance(refused.exception, ConfigError)
        assert refused.exception.where == more[0]
