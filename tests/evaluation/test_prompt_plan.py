from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expo_ray.errors import ConfigError
from expo_ray.evaluation.prompt_plan import plan_prompts
from expo_ray.selection.sample_size import prompts_for_gain, prompts_for_margin
from tests.evaluation.result_logs import rewards_table


def table(path: Path, right: np.ndarray[Any, Any]) -> str:
    lines = ["id,a,b", *(f"{i},{one},{other}" for i, (one, other) in enumerate(right.T))]
    path.write_text("\n".join(lines))
    return str(path)


def test_without_a_pilot_the_source_is_said() -> None:
    worst = plan_prompts(margin=0.02)
    [spread] = worst["spreads"]
    assert spread["variance"] == 0.25  # 2 * 0.5 * 0.5 * (1 - 0.5)
    assert "2411.00640" in spread["source"] and "worst case" in spread["source"]
    assert worst["sizes"] == [{
        "task": "", "samples_per_prompt": 1, "num_prompts": 4917, "num_answers": 4917,
    }]  # fmt: skip
    known = plan_prompts(margin=0.02, accuracy=0.9, correlation=0.8)
    assert known["sizes"][0]["num_prompts"] == 818
    assert "assumed correlation 0.8" in known["spreads"][0]["source"]


def test_a_pilot_of_both_gives_the_upper_limit_of_what_differs(tmp_path: Path) -> None:
    right = np.array([[1] * 80 + [0] * 20, [1] * 74 + [0] * 6 + [1] * 4 + [0] * 16])
    path = table(tmp_path / "r.csv", right)
    plan = plan_prompts(f"{path}#a", f"{path}#b", margin=0.05)
    [spread] = plan["spreads"]
    assert spread["estimate"] == 0.1
    assert 0.12 < spread["variance"] < 0.15  # Clopper-Pearson, one-sided at 80%
    expected = prompts_for_margin(
        spread["variance"], 0.05, power=0.8, confidence=0.95, proportions=True
    )
    assert plan["sizes"][0]["num_prompts"] == expected


def test_more_samples_per_prompt_need_fewer_prompts(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    hard = rng.normal(0, 1, 400)
    sides = []
    for name, shift in (("a", 0.0), ("b", 0.1)):
        drawn = hard[:, None] + shift + rng.normal(0, 0.6, 400)[:, None]
        drawn = drawn + rng.normal(0, 1, (400, 4))
        sides.append(rewards_table(tmp_path / f"{name}.parquet",
                                   {f"p{i}": list(row) for i, row in enumerate(drawn)},
                                   alpha=shift))  # fmt: skip
    plan = plan_prompts(*sides, gain=0.1)
    [spread] = plan["spreads"]
    # Between prompts 2 * 0.36, within 2 * 1.
    assert spread["estimate"] == pytest.approx(2.72, rel=0.1)
    assert spread["within"] == pytest.approx(2.0, rel=0.1)
    prompts = [size["num_prompts"] for size in plan["sizes"]]
    assert [size["samples_per_prompt"] for size in plan["sizes"]] == [1, 2, 4, 8]
    assert prompts == sorted(prompts, reverse=True)
    one = prompts_for_gain(spread["variance"], 0.1, power=0.8, confidence=0.95)
    assert prompts[0] == one
    eight = prompts_for_gain(
        spread["variance"] - spread["within"] * 7 / 8, 0.1, power=0.8, confidence=0.95
    )
    assert prompts[3] == eight


def test_documents_raise_the_number(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    gaps = np.repeat(rng.normal(0, 1, 50), 4)
    path = tmp_path / "r.csv"
    path.write_text(
        "id,page,a,b\n" + "\n".join(f"{i},{i // 4},0,{gap}" for i, gap in enumerate(gaps))
    )
    asked: dict[str, Any] = {"gain": 0.2}
    alone = plan_prompts(f"{path}#a", f"{path}#b", **asked)["sizes"][0]["num_prompts"]
    shared = plan_prompts(f"{path}#a", f"{path}#b", cluster="page", **asked)
    assert shared["sizes"][0]["num_prompts"] == pytest.approx(4 * alone, rel=0.05)


def test_one_model_alone_needs_a_correlation(tmp_path: Path) -> None:
    right = np.array([[1] * 90 + [0] * 10, [0] * 100])
    path = table(tmp_path / "r.csv", right)
    plan = plan_prompts(f"{path}#a", gain=0.05, correlation=0.6)
    [spread] = plan["spreads"]
    assert spread["estimate"] == pytest.approx(2 * 0.0909 * 0.4, rel=1e-3)
    assert "pilot of one model on 100 items; assumed correlation 0.6" in spread["source"]


def sampled(path: Path, drawn: np.ndarray[Any, Any], *, alpha: float = 0.0) -> Path:
    return rewards_table(path, {f"p{i}": list(row) for i, row in enumerate(drawn)}, alpha=alpha)


def test_samples_of_one_model_are_not_taken_for_one_answer(tmp_path: Path) -> None:
    rng = np.random.default_rng(11)
    prompts = rng.multivariate_normal([0, 0], 0.3 * np.array([[1, 0.5], [0.5, 1]]), 3000)
    drawn = prompts[:, :, None] + rng.normal(0, 1, (3000, 2, 8))
    plan = plan_prompts(sampled(tmp_path / "a.parquet", drawn[:, 0]), gain=0.1, correlation=0.5)
    [spread] = plan["spreads"]
    assert spread["within"] == pytest.approx(2.0, rel=0.05)
    # What pairs of single answers, and of means over eight, in truth scatter by.
    for size, taken in zip(plan["sizes"], (1, 2, 4, 8), strict=True):
        assert size["samples_per_prompt"] == taken
        gaps = drawn[:, 1, :taken].mean(axis=1) - drawn[:, 0, :taken].mean(axis=1)
        needed = prompts_for_gain(float(gaps.var()), 0.1, power=0.8, confidence=0.95)
        assert size["num_prompts"] == pytest.approx(needed, rel=0.1)


def test_several_samples_on_one_side_alone_are_counted(tmp_path: Path) -> None:
    rng = np.random.default_rng(12)
    several = sampled(tmp_path / "a.parquet", rng.normal(0, 1, (1000, 8)))
    single = sampled(tmp_path / "b.parquet", rng.normal(0, 1, (1000, 1)), alpha=0.3)
    [spread] = plan_prompts(several, single, gain=0.1)["spreads"]
    assert spread["estimate"] == pytest.approx(2.0, rel=0.1)
    assert spread["within"] == pytest.approx(1.0, rel=0.1)


def test_documents_of_one_model_raise_the_number(tmp_path: Path) -> None:
    scores = np.repeat(np.random.default_rng(5).normal(0, 1, 50), 4)
    path = tmp_path / "r.csv"
    path.write_text("id,page,a\n" + "\n".join(f"{i},{i // 4},{s}" for i, s in enumerate(scores)))
    alone, shared = (plan_prompts(path, gain=0.2, metric="a", cluster=name) for name in (
        None, "page"))  # fmt: skip
    assert shared["spreads"][0]["design_effect"] == pytest.approx(4, rel=0.05)
    assert shared["sizes"][0]["num_prompts"] == pytest.approx(
        4 * alone["sizes"][0]["num_prompts"], rel=0.05
    )


def test_more_samples_do_not_average_out_what_documents_share(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    pages = np.repeat(rng.normal(0, 1, 60), 4)
    path = tmp_path / "r.csv"
    lines = [f"{i},{i // 4},{k},{page + rng.normal()}" for i, page in enumerate(pages)
             for k in range(2)]  # fmt: skip
    path.write_text("id,page,sample,a\n" + "\n".join(lines))
    plan = plan_prompts(path, gain=0.2, cluster="page", correlation=0.0, metric="a")
    # Whatever the samples: four prompts of a page say hardly more than one.
    first, last = plan["sizes"][0]["num_prompts"], plan["sizes"][-1]["num_prompts"]
    spread = plan["spreads"][0]
    assert last == prompts_for_gain(
        spread["variance"] * spread["design_effect"] - spread["within"] * 7 / 8,
        0.2, power=0.8, confidence=0.95,
    )  # fmt: skip
    # In truth 4 * 2 * 1 + 2 of one sample, and 4 * 2 * 1 + 2 / 8 of eight.
    assert last / first == pytest.approx(8.25 / 10, rel=0.1)


@pytest.mark.parametrize(("asked", "where"), [
    ({"other": "b.csv"}, "other="), ({"metric": "acc"}, "metric="), ({"item": "id"}, "item="),
    ({"cluster": "page"}, "cluster="),
])  # fmt: skip
def test_what_only_results_could_answer_is_refused_without_them(
    asked: dict[str, str], where: str
) -> None:
    with pytest.raises(ConfigError, match="there is nothing to read") as caught:
        plan_prompts(gain=0.1, **asked)  # type: ignore[arg-type]
    assert caught.value.where == where


@pytest.mark.parametrize(("asked", "where"), [
    ({}, "gain="), ({"gain": 0.1, "margin": 0.1}, "margin="), ({"gain": -0.1}, "gain="),
    ({"margin": 0.0}, "margin="), ({"gain": 0.1, "power": 0.3}, "power="),
    ({"margin": float("nan")}, "margin="), ({"gain": float("inf")}, "gain="),
    ({"margin": 1.0}, "margin="), ({"gain": 1.5}, "gain="),
    ({"gain": 0.1, "accuracy": 1.0}, "accuracy="),
    ({"gain": 0.1, "correlation": 1.0}, "correlation="),
])  # fmt: skip
def test_questions_without_an_answer_are_refused(asked: dict[str, float], where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_prompts(**asked)
    assert caught.value.where == where


def test_what_the_pilot_tells_is_not_assumed(tmp_path: Path) -> None:
    path = table(tmp_path / "r.csv", np.array([[1, 0, 1], [1, 1, 0]]))
    with pytest.raises(ConfigError, match="the pilot tells this itself"):
        plan_prompts(f"{path}#a", f"{path}#b", gain=0.1, correlation=0.5)
