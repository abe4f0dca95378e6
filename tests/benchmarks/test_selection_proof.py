"""The selection's proof: what it counts, whom it asks, and that a rerun does what is missing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.proof_answers import truth_gain
from benchmarks.proof_case import Case, prompts_of
from benchmarks.proof_summary import (
    record,
    recovered_share,
    render,
    significantly_worse,
    summarize,
)
from benchmarks.selection_proof import (
    FRACTIONS,
    FROZEN,
    list_cases,
    read_lines,
    replay,
    run_cases,
)
from expo_ray.lab.data import requests_for
from expo_ray.reports.proof import proof_page
from expo_ray.selection import SelectionSettings


def gain(mean: float, p_value: float = 0.001) -> dict[str, float]:
    return {"gain": mean, "ci_low": mean - 0.1, "ci_high": mean + 0.1, "p_value": p_value}


RACE = {"chosen": 1.5, "share": 0.3, "tuning_share": 0.5}


def run(seed: int, chosen: float, reward_only: float, oracle: float, p: float = 0.001) -> Any:
    return {
        "kind": "run",
        "key": f"run {seed}",
        "digest": "d",
        "seed": seed,
        "fit": True,
        "fraction": 0.1,
        "verdict": "extrapolate",
        "chosen": 1.0,
        "by_reward": 1.5,
        "reward_only": 12.0,
        "oracle": 2.0,
        "commit": "abc",
        "race": RACE,
        "truth": {
            "chosen": gain(chosen, p),
            "by_reward": gain(0.2),
            "reward_only": gain(reward_only),
            "oracle": gain(oracle),
        },
    }


def control(kind: str, verdict: str, chosen: float = 0.0, *, fit: bool = True) -> Any:
    line: dict[str, Any] = {
        "kind": kind,
        "key": f"{kind} x",
        "digest": "d",
        "verdict": verdict,
        "chosen": chosen,
    }
    line |= {"fit": fit, "commit": "abc", "by_reward": chosen, "race": {**RACE, "chosen": chosen}}
    return {**line, "truth": {"chosen": gain(0.4)}} if chosen else line


RUNS = [run(1, 0.3, -1.0, 0.4), run(2, 0.4, -0.5, 0.5), run(3, 0.0, 0.2, 0.1, p=1.0)]
CONTROLS = [
    *[control("unrelated", "keep-aligned")] * 19,
    control("random-direction", "keep-aligned"),
]


def test_the_share_is_of_sums_over_all_runs() -> None:
    found = recovered_share(RUNS)
    assert found["share"] == pytest.approx(0.7 / 1.0)
    assert found["ci_low"] < found["share"] < found["ci_high"]
    assert recovered_share([run(1, 0.0, 0.0, 0.0)])["share"] is None


def test_what_is_significantly_worse_is_corrected_for_the_number_of_runs() -> None:
    assert significantly_worse(RUNS, "reward_only") == (2, 2)
    many = [run(i, -0.1, 0.0, 0.1, p=0.04) for i in range(3)]
    assert significantly_worse(many, "chosen") == (3, 0)
    assert significantly_worse(RUNS, "chosen") == (0, 0)


def test_promises_are_judged_by_the_figures() -> None:
    assert set(summarize([*RUNS, *CONTROLS])["promises"].values()) == {True}
    # Without a control nothing is known of controls.
    assert [*summarize(RUNS)["promises"].values()] == [True, True, True, None, None]
    assert render(RUNS).count("not tested") == 2
    lost = [control("random-direction", "extrapolate", 0.5)] * 2
    worse = [run(1, -0.3, 0.1, 0.4), run(2, 0.1, 0.1, 0.5)]
    assert set(summarize([*worse, *CONTROLS, *lost])["promises"].values()) == {False}


def test_a_pair_that_is_unfit_counts_as_kept_only_where_diagnose_is_asked() -> None:
    lost = [control("unrelated", "extrapolate", 0.3, fit=False)] * 2
    found = summarize([*RUNS, *CONTROLS, *lost])
    assert found["kept"] == {"unrelated": [19, 21, 21], "random-direction": [1, 1, 1]}
    assert list(found["promises"].values())[-2:] == [True, False]


def test_the_report_lists_every_run_and_every_control_that_was_not_kept() -> None:
    lost = control("random-direction", "extrapolate", 0.5)
    text = render([*RUNS, *CONTROLS, lost], num_expected=25)
    assert (
        "| 1 | 10% | 1 | +0.30 [+0.20, +0.40] | 1.5 | +0.20 [+0.10, +0.30] | 12 | -1.00 [" in text
    )
    assert text.count("| 10% |") == 3
    assert "Not finished: 24 of 25" in text
    assert "random-direction: 1 of 2, 1 by the choice alone" in text
    assert "| random-direction x | 0.5 | +0.40 [+0.30, +0.50] | yes |" in text
    assert "all 24 cases" in text
    assert "the full grid in 100%, for 30% of its answers (50% of those" in text


def test_the_report_of_a_laboratory_tells_what_was_measured(tmp_path: Path) -> None:
    path = tmp_path / "proof.json"
    assert proof_page(path) is None
    lost = control("random-direction", "extrapolate", 0.5)
    path.write_text(json.dumps(record([*RUNS, *CONTROLS, lost], num_expected=25)))
    page = proof_page(path)
    assert page is not None and [run["seed"] for run in page["runs"]] == [1, 2, 3]
    text = " ".join(page["sentences"])
    assert "24 of 25 cases" in text
    assert "recovered 70% of the truth" in text
    assert "in 0 of them, the highest reward alone in 2 (" in text
    assert "Of 21 directions that mean nothing, it kept the aligned model on 20; without" in text


def test_cases_are_what_was_promised() -> None:
    cases = list_cases(range(100, 120), FRACTIONS, 30)
    assert len({case.key for case in cases}) == len(cases) == 80
    runs = [case for case in cases if case.kind == "run"]
    assert [case.fraction for case in runs] == [0.05, 0.1, 0.2, 0.4, 1.0] * 4
    controls = [case for case in cases if case.kind != "run"]
    assert sorted(case.seed for case in controls) == list(range(100, 160))
    assert {case.judge for case in controls[:20]} == {None}
    assert {case.judge for case in controls[20:]} == set(range(100, 120))
    unrelated = [case for case in controls if case.kind == "unrelated"]
    assert len(unrelated) == 30
    assert {case.other for case in unrelated} == set(range(130, 160))


def test_a_laboratory_whose_judges_are_not_asked_trains_the_least_it_can() -> None:
    own = FROZEN.lab_of(Case(kind="random-direction", seed=7, fraction=0.1))
    judged = FROZEN.lab_of(Case(kind="random-direction", seed=7, fraction=0.1, judge=1))
    assert judged.num_reward_pairs == 1 and not judged.guard_reward_model
    same = {"num_reward_pairs", "guard_reward_model"}
    assert own.model_dump(exclude=same) == judged.model_dump(exclude=same)


def test_selection_oracle_and_truth_share_no_request_with_each_other_or_with_training() -> None:
    settings = FROZEN.lab_of(Case(kind="run", seed=0, fraction=0.1))
    parts = prompts_of(settings, FROZEN)
    texts = {
        name: {prompt.messages[0]["content"] for prompt in prompts}
        for name, prompts in parts.items()
    }
    assert len(texts["truth"]) == len(texts["oracle"]) == 2080
    ids = [prompt.prompt_id for prompts in parts.values() for prompt in prompts]
    assert len(set(ids)) == len(ids)

    def asked(name: str) -> set[str]:
        # The words of a request without those of its template.
        return {id_.split("/")[0] for id_ in (p.prompt_id for p in parts[name])}

    assert asked("selection").isdisjoint(asked("oracle"))
    assert asked("truth").isdisjoint(asked("oracle") | asked("selection"))
    trained = {
        request
        for purpose in ("initial", "aligned", "reward_model", "guard_reward_model")
        for request in requests_for(settings, purpose)
    }
    assert trained.isdisjoint(requests_for(settings, "evaluation"))


def test_lines_of_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    assert read_lines(path, FROZEN.digest()) == []
    path.write_text(json.dumps({"key": "x", "digest": FROZEN.digest()}) + "\n")
    assert len(read_lines(path, FROZEN.digest())) == len(read_lines(path)) == 1
    other = replace(FROZEN, selection=SelectionSettings(confidence=0.9))
    with pytest.raises(SystemExit, match="other settings"):
        read_lines(path, other.digest())
    with path.open("a") as file:
        file.write(json.dumps({"key": "y", "digest": other.digest()}) + "\n")
    with pytest.raises(SystemExit, match="other settings"):
        read_lines(path)


def test_truth_is_compared_request_by_request() -> None:
    import numpy as np

    base = np.random.default_rng(0).normal(0, 3, 200)
    found = truth_gain(base + np.linspace(0.05, 0.15, 200), base)
    assert found["gain"] == pytest.approx(0.1)
    assert 0.05 < found["ci_low"] < 0.1 < found["ci_high"] < 0.15
    assert found["p_value"] < 0.01
    assert truth_gain(base, base)["p_value"] == 1


@pytest.mark.ray
@pytest.mark.slow
def test_a_rerun_does_what_is_missing(tmp_path: Path, ray_cluster: str) -> None:
    lab = FROZEN.lab.model_copy(
        update={
            "num_sft_examples": 48,
            "num_preference_pairs": 80,
            "dpo_batch_size": 8,
            "num_reward_pairs": 32,
            "num_guard_pairs": 32,
            "max_new_tokens": 4,
        }
    )
    frozen = replace(
        FROZEN,
        lab=lab,
        alphas=(0.0, 0.5),
        num_selection_requests=20,
        num_selection_templates=1,
        num_truth_requests=4,
    )
    output = tmp_path / "results.jsonl"
    # Seed 3 has a run, the controls are on seeds 3 and 4: the latter is judged by seed 3's models.
    cases = list_cases([3], [0.2], 1)
    tables = tmp_path / "tables"
    run_cases(cases, frozen, output=output, cache=tmp_path / "labs", keep=tables)
    lines = read_lines(output, frozen.digest())
    assert sorted(line["key"] for line in lines) == sorted(case.key for case in cases)
    assert "Every run" in render(lines)
    assert all(0 < line["race"]["share"] <= 1 for line in lines)
    # From the answers that were kept the same is chosen again, without a model.
    chosen = {line["key"]: (line["chosen"], line.get("truth")) for line in lines}
    replayed = replay(tables, frozen)
    assert {line["key"]: (line["chosen"], line.get("truth")) for line in replayed} == chosen
    with pytest.raises(SystemExit, match="answers of other settings"):
        replay(tables, replace(frozen, alphas=(0.0, 0.25)))
    output.write_text("".join(json.dumps(line) + "\n" for line in lines[1:]))
    run_cases(cases, frozen, output=output, cache=tmp_path / "labs")
    again = read_lines(output, frozen.digest())
    assert again[:-1] == lines[1:]
    same = ("key", "chosen", "verdict", "curves")
    assert {k: again[-1][k] for k in same} == {k: lines[0][k] for k in same}
