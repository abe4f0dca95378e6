"""Candidates ranked by what several samples of a prompt say together."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from expo_ray.selection.choice import choose_alpha
from expo_ray.selection.settings import SelectionSettings
from tests.selection.tables import make_rows, responses_of, rewards_of

NUM_PROMPTS = 120


def chosen(statistic: str, check: str = "check:number") -> dict[str, Any]:
    """Choose among a model that is always half right, and one that is right on more prompts."""

    def share(right: float) -> list[float]:
        return [float(i % 20 < 20 * right) for i in range(NUM_PROMPTS) for _ in range(2)]

    rows = make_rows(
        {0.0: share(0.4), 0.5: [1.0, 0.0] * NUM_PROMPTS, 1.0: share(0.6)},
        num_tuning=NUM_PROMPTS // 2,
        num_samples=2,
    )
    for row in rows:
        row["reward_model"] = check
        row["response"] = f"the answer is {row['reward']}"
    settings = SelectionSettings(prefer="best", sample_statistic=statistic)
    return choose_alpha(responses_of(rows), rewards_of(rows), settings=settings)


def test_each_statistic_ranks_in_its_own_way() -> None:
    by_mean, by_pass, by_vote = map(chosen, ("avg", "pass@2", "majority"))
    assert (by_mean["best_alpha"], by_mean["heldout"]["gain"]) == (1.0, pytest.approx(0.2))
    assert (by_pass["best_alpha"], by_pass["heldout"]["gain"]) == (0.5, pytest.approx(0.6))
    assert by_vote["best_alpha"] == 1.0
    rewards = [c["mean_reward"] for c in by_pass["candidates"]]
    assert rewards == pytest.approx([0.4, 1.0, 0.6])


def test_every_statistic_is_told_whichever_ranks() -> None:
    for statistic in ("avg", "pass@2"):
        candidates = chosen(statistic)["candidates"]
        told = {row["statistic"]: row for row in candidates[1]["samples"]}
        means = {name: row["mean"] for name, row in told.items()}
        assert means == {"avg@2": 0.5, "pass@2": 1.0, "majority@2": 0.5}
        assert {row["num_prompts"] for row in told.values()} == {NUM_PROMPTS // 2}
        assert told["avg@2"]["reward_model"] == "check:number"
        assert told["avg@2"]["guard"] is None
        low, high = (candidates[0]["samples"][1][end] for end in ("ci_low", "ci_high"))
        assert 0.25 < low < 0.4 < high < 0.55
    assert chosen("avg", "rm")["candidates"][1]["samples"] == []


@pytest.mark.parametrize("text", ["", "mean", "pass", "pass@0", "pass@x", "majority@2"])
def test_no_other_statistic_is_taken(text: str) -> None:
    with pytest.raises(ValidationError, match="sample_statistic"):
        SelectionSettings(sample_statistic=text)
