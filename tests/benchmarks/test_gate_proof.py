"""What the proof of the gate simulates is what the gate does."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.gate_proof import MARGIN, PILOT, Setting, draw, passes, passes_by_shares, planned
from expo_ray.evaluation.prompt_plan import plan_prompts, upper_limit_of_share
from expo_ray.selection import SelectionSettings
from expo_ray.selection.gates import Scores, check_gate


def test_the_vectorised_test_is_that_of_the_gate() -> None:
    setting, n = Setting(accuracy=0.9, correlation=0.8), 818
    gained, lost = draw(setting, MARGIN / 2, n, 40, seed=1)
    passed = passes("gate", gained, lost, n)
    assert 0 < passed.sum() < 40  # both answers occur
    settings = SelectionSettings(no_worse_than={"x": MARGIN})
    for up, down, expected in zip(gained, lost, passed, strict=True):
        aligned = np.r_[np.zeros(up), np.ones(n - up)]
        candidate = np.r_[np.ones(up), np.zeros(down), np.ones(n - up - down)]
        scores = Scores(name="x", prompts="x", reward_model="0-check", aligned=aligned,
                        candidate=candidate)  # fmt: skip
        gate, _ = check_gate(scores, 0.3, settings)
        assert (gate.verdict == "no-worse") == expected


def test_the_numbers_are_those_of_the_planner() -> None:
    setting = Setting(accuracy=0.9, correlation=0.8)
    plan = plan_prompts(margin=MARGIN, accuracy=0.9, correlation=0.8)
    assert plan["sizes"][0]["num_prompts"] == setting.num_prompts == 818
    assert planned(upper_limit_of_share(7, PILOT)) > planned(7 / PILOT)


@pytest.mark.parametrize("worse", [0.0, MARGIN])
def test_the_shares_are_those_of_the_setting(worse: float) -> None:
    gained, lost = Setting(accuracy=0.5, correlation=0.5).shares(worse)
    assert gained - lost == pytest.approx(-worse)
    assert gained + lost == pytest.approx(0.25, abs=1e-3)


def test_the_vectorised_test_of_shares_is_that_of_the_gate() -> None:
    rng = np.random.default_rng(3)
    aligned = rng.binomial(4, 0.9, (40, 400)) / 4
    candidate = np.where(rng.random(aligned.shape) < 0.1, rng.binomial(4, 0.9, aligned.shape) / 4,
                         aligned)  # fmt: skip
    candidate[rng.random(aligned.shape) < 0.005] = 0.0
    passed = passes_by_shares(candidate - aligned)
    assert 0 < passed.sum() < 40
    settings = SelectionSettings(no_worse_than={"x": MARGIN})
    for one, other, expected in zip(aligned, candidate, passed, strict=True):
        scores = Scores(name="x", prompts="x", reward_model="0-check", aligned=one,
                        candidate=other)  # fmt: skip
        gate, _ = check_gate(scores, 0.3, settings)
        assert (gate.verdict == "no-worse") == expected
