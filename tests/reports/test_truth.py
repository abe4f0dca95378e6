"""The hidden truth, the examples, the load tests, the deltas: facts with known answers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from expo_ray.loadtests.paired import compare_requests
from expo_ray.reports.deltas import summarize
from expo_ray.reports.examples import MAX_CHARACTERS, count_outcomes, differences, readable
from expo_ray.reports.html_report import write_report
from expo_ray.reports.pairing import gain_curve, paired_gain
from expo_ray.reports.proof import proof_page
from expo_ray.reports.run_files import RunFiles
from expo_ray.reports.throughput import compare_throughput
from expo_ray.reports.truth import judge_by_truth
from tests.reports.page import Page
from tests.reports.run_directory import ALPHAS, RunDirectory


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    directory = RunDirectory(tmp_path_factory.mktemp("facts") / "run")
    directory.write_all()
    return directory


def test_gains_are_paired_and_by_split(run: RunDirectory) -> None:
    tables = RunFiles.read(run.path).truth
    for split in ("tuning", "heldout"):
        mask = np.array([run.splits[p] == split for p in run.prompt_ids])
        differences = (run.rewards["truth"][2.0] - run.rewards["truth"][0.0])[mask]
        gain = paired_gain(tables, 2.0, split=split, confidence=0.95)
        assert gain is not None
        assert gain.num_pairs == 100
        assert gain.mean == pytest.approx(differences.mean(), abs=1e-12)
        half = 1.98 * differences.std(ddof=1) / 10
        assert gain.ci_low == pytest.approx(differences.mean() - half, abs=0.25 * half)
        assert gain.ci_high == pytest.approx(differences.mean() + half, abs=0.25 * half)


def test_rows_without_a_reward_leave_their_pair_out(run: RunDirectory) -> None:
    tables = dict(RunFiles.read(run.path).truth)
    without = [None, *tables[2.0]["reward"].to_pylist()[2:]]
    tables[2.0] = tables[2.0].slice(1)
    tables[2.0] = tables[2.0].set_column(
        tables[2.0].column_names.index("reward"), "reward", pa.array(without, pa.float64())
    )
    gain = paired_gain(tables, 2.0, split=None, confidence=0.95)
    assert gain is not None and gain.num_pairs == 198


def test_alpha_0_gains_nothing_over_itself(run: RunDirectory) -> None:
    curve = gain_curve(
        RunFiles.read(run.path).truth, alphas=(*ALPHAS, 99.0), split="tuning", confidence=0.95
    )
    assert [gain.alpha for gain in curve] == list(ALPHAS)
    assert (curve[0].mean, curve[0].ci_low, curve[0].ci_high) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("verdict", "slope", "answer", "words"),
    [
        ("extrapolate", 0.2, "Yes", "At the chosen alpha 3 the hidden truth rose by"),
        ("extrapolate", -0.15, "Undecided", "without a proven real gain"),
        ("extrapolate", -0.6, "No", "it fell while the reward rose"),
        ("keep-aligned", 0.2, "No", "a real gain was left on the table"),
        ("keep-aligned", -0.15, "Undecided", "whether a gain was lost cannot be told"),
        ("keep-aligned", -0.6, "Yes", "avoided a real loss"),
    ],
)
def test_the_truth_is_told_whatever_it_is(
    tmp_path: Path, verdict: str, slope: float, answer: str, words: str
) -> None:
    run = RunDirectory(tmp_path, truth_slope=slope)
    run.write_truth()
    selection = run.write_selection(verdict=verdict, best_alpha=3.0)
    told = judge_by_truth(selection, RunFiles.read(tmp_path).truth)
    assert told is not None
    assert (told.answer, told.judged.alpha) == (answer, 3.0)
    assert words in told.explanation
    page = Page(write_report(tmp_path))
    assert f"{told.answer}. {told.explanation} {told.oracle}" in page.text
    assert ("by that measure this choice is wrong" in page.text) == (answer == "No" and slope < 0)


def test_the_truths_own_choice_is_made_on_tuning_prompts(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, truth_slope=-0.2)
    run.write_truth()
    selection = run.write_selection(verdict="extrapolate", best_alpha=2.0)
    told = judge_by_truth(selection, RunFiles.read(tmp_path).truth)
    assert told is not None and told.best is not None
    tuning = np.array([run.splits[p] == "tuning" for p in run.prompt_ids])
    scores = {a: s - run.rewards["truth"][0.0] for a, s in run.rewards["truth"].items()}
    assert told.best.alpha == max(ALPHAS, key=lambda a: scores[a][tuning].mean()) == 1.0
    assert told.best.mean == pytest.approx(scores[1.0][~tuning].mean())
    share = round(100 * told.judged.mean / told.best.mean)
    assert f"the choice by reward reached {share}% of that" in told.oracle


def test_examples_are_the_quartiles_worst_and_best_among_them(run: RunDirectory) -> None:
    page = Page(write_report(run.path))
    scores = run.rewards["0-reward-model"]
    deltas = {
        p: scores[3.0][i] - scores[0.0][i]
        for i, p in enumerate(run.prompt_ids)
        if run.splits[p] == "heldout"
    }
    ranked = sorted(deltas, key=lambda p: deltas[p])
    shown = [page.text.index(f"reward, prompt {ranked[i]} ") for i in (0, 25, 50, 74, 99)]
    assert shown == sorted(shown)
    better = sum(d > 0 for d in deltas.values())
    assert f"{better} / {100 - better}" in page.text


def test_outcomes_count_ties_apart() -> None:
    outcome = count_outcomes(pa.chunked_array([[0.5, 0.0, -0.1, 0.2]]))
    assert (outcome.better, outcome.equal, outcome.worse, outcome.total) == (2, 1, 1, 4)


def test_samples_of_a_prompt_are_compared_one_by_one() -> None:
    row = {"prompt_id": "a", "split": "tuning"}
    rewards = {
        0.0: [{**row, "sample": 0, "reward": 1.0}, {**row, "sample": 1, "reward": 2.0}],
        1.0: [{**row, "sample": 1, "reward": 5.0}, {**row, "sample": 0, "reward": None}],
    }
    tables = {alpha: pa.Table.from_pylist(rows) for alpha, rows in rewards.items()}
    found = differences(tables, 1.0, split=None).to_pylist()
    assert found == [{"prompt_id": "a", "sample": 1, "difference": 3.0}]
    assert differences(tables, 1.0, split="heldout").num_rows == 0


def test_long_responses_are_cut_and_say_so() -> None:
    text = "x" * (MAX_CHARACTERS + 1500)
    assert readable(text) == "x" * MAX_CHARACTERS + " [1,500 more characters]"
    assert readable("short") == "short"


def test_throughput_compares_the_highest_common_load(run: RunDirectory) -> None:
    speed = compare_throughput(RunFiles.read(run.path))
    assert speed is not None
    assert list(speed.series) == ["aligned", "alpha 3"]
    # One after the other, without an interval: no ratio is shown.
    assert speed.ratio is None
    assert speed.sentence.startswith("Against the aligned model, with 16 in flight: tokens per ")
    assert "cannot be told from noise" in speed.sentence
    assert not speed.void and not speed.rejected


@pytest.mark.parametrize(
    ("slower", "tile"),
    [
        (0.3, "Tokens per second no telling cannot be told from aligned: "),
        (3.0, "Tokens per second \N{MULTIPLICATION SIGN} 0.25 against aligned: "),
    ],
)
def test_the_tile_of_the_speed_says_when_it_cannot_tell(
    tmp_path: Path, slower: float, tile: str
) -> None:
    run = RunDirectory(tmp_path, num_prompts=20)
    run.write_selection(verdict="extrapolate", best_alpha=3.0)
    run.write_loadtests(3.0, rejected=False)
    assert "Tokens per second" not in Page(write_report(tmp_path)).text
    rows = {
        side: [
            {
                "round": number, "request_id": i, "prompt_id": f"p{i}", "phase": "measured",
                "error": None, "output_tokens": 10, "intended_seconds": 0.0,
                "done_seconds": 1.0 + extra * (side == "candidate"),
            }
            for number, extra in enumerate((slower, slower if slower > 1 else -slower))
            for i in range(20)
        ]
        for side in ("baseline", "candidate")
    }  # fmt: skip
    point = {
        "concurrency": 16,
        "offered_rate": None,
        **compare_requests(rows["baseline"], rows["candidate"], is_closed=True),
    }
    comparison = {"schema_version": 1, "rounds": 2, "points": [point]}
    (tmp_path / "loadtest" / "comparison.json").write_text(json.dumps(comparison))
    text = Page(write_report(tmp_path)).text
    assert tile in text
    assert "Against the aligned model, by turns, with 16 in flight: " in text


def test_a_void_load_test_is_said_to_be_void(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, num_prompts=20)
    run.write_selection(verdict="extrapolate", best_alpha=3.0)
    run.write_loadtests(3.0, rejected=False)
    file = tmp_path / "loadtest" / "alpha-3" / "summary.json"
    summary = json.loads(file.read_text())
    summary["points"][0]["client_saturated"] = True
    for name in ("median_ttft_ms", "p99_e2el_ms"):
        summary["points"][1][name] = None
    file.write_text(json.dumps(summary))
    text = Page(write_report(tmp_path)).text
    assert "the client could not keep up" in text
    assert "1 in flight (void)" in text


def test_deltas_are_added_up_by_module_and_layer() -> None:
    def tensor(initial: float, delta: float) -> dict[str, object]:
        return {"statistics": {"initial_norm": initial, "delta_norm": delta}}

    record = {
        "tensors": {
            "model.layers.0.mlp.up_proj.weight": tensor(3.0, 0.03),
            "model.layers.0.mlp.up_proj.bias": tensor(4.0, 0.04),
            "model.layers.10.mlp.up_proj.weight": tensor(10.0, 0.5),
            "model.embed_tokens.weight": tensor(2.0, 0.0),
            "model.new_rows": tensor(0.0, 1.0),
            "model.counter": {"statistics": {}},
        }
    }
    found = summarize({1.0: {}, 2.0: record})
    assert found is not None
    assert found.modules == ["mlp.up_proj"]
    assert found.layers == ["0", "10"]
    assert found.cells == pytest.approx({("mlp.up_proj", "0"): 1.0, ("mlp.up_proj", "10"): 5.0})
    assert found.others[0] == ("model.embed_tokens.weight", 0.0)
    # Two stacks of layers are two sets of rows, the experts of a layer one row.
    parts = {
        "model.vision_tower.layers.0.mlp.up_proj.weight": tensor(1.0, 0.1),
        "model.language_model.layers.0.mlp.up_proj.weight": tensor(1.0, 0.2),
        "model.language_model.layers.0.mlp.experts.0.up_proj.weight": tensor(3.0, 0.03),
        "model.language_model.layers.0.mlp.experts.11.up_proj.weight": tensor(4.0, 0.04),
    }
    found = summarize({1.0: {"tensors": parts}})
    assert found is not None
    assert found.cells == pytest.approx(
        {
            ("vision_tower mlp.up_proj", "0"): 10.0,
            ("language_model mlp.up_proj", "0"): 20.0,
            ("language_model mlp.experts.*.up_proj", "0"): 1.0,
        }
    )
    assert summarize({}) is None and summarize({1.0: {"tensors": {}}}) is None


def test_what_many_laboratories_showed_stands_beside_the_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gain = {"gain": 0.4, "ci_low": 0.2, "ci_high": 0.6, "p_value": 0.01}
    picks = {"chosen": 1.0, "reward_only": 12.0, "oracle": 2.0}
    record = {
        "num_runs": 1,
        "num_controls": 60,
        "num_kept": 58,
        "num_kept_by_choice": 51,
        "num_cases": 61,
        "num_expected": 61,
        "recovered": {"share": 0.8, "ci_low": 0.6, "ci_high": 0.9},
        "significantly_worse": {"chosen": [0, 0], "reward_only": [1, 1]},
        "commits": ["abc"],
        "runs": [{"seed": 100, "fraction": 0.05, **picks, "truth": dict.fromkeys(picks, gain)}],
    }
    path = tmp_path / "proof.json"
    path.write_text(json.dumps(record))
    monkeypatch.setattr("expo_ray.reports.html_report.proof_page", lambda: proof_page(path))
    directory = RunDirectory(tmp_path / "run")
    directory.write_all()
    text = Page(write_report(directory.path)).text
    assert "And in other laboratories?" in text
    assert "recovered 80% of the truth that an oracle would have gained" in text
    assert "kept the aligned model on 58" in text and "not finished" not in text
    assert "Every one of the 1 laboratories" in text
