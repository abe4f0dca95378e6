"""The study of a language model: what it computes from answers that are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.language_study import deal
from benchmarks.language_summary import pooled, render
from expo_ray.tables import Prompt


def line(seed: int, *, chosen: float, others: float = 0.0) -> dict[str, Any]:
    """Alpha 1 gains 0.5 on every second of 40 prompts, alpha 4 loses 0.5 on all."""
    truths = {0.0: [0.5] * 40, 1.0: [0.5, 1.0] * 20, 4.0: [0.0] * 40}
    rewards = {0.0: 0.1, 1.0: 0.2, 4.0: 0.9}
    curves = [
        {
            "alpha": alpha,
            "truths": truths[alpha],
            "other_truths": [0.5 + others * alpha] * 20,
            "scorer": rewards[alpha],
            "guard": -rewards[alpha],
            "tokens": 30 + alpha,
            "cut_off": 0.25,
            "repeated": 0.0,
        }
        for alpha in truths
    ]
    picks = {
        name: {
            "alpha": alpha,
            "gain": float(np.mean(np.subtract(truths[alpha], truths[0.0]))),
            "ci_low": -0.6 if alpha == 4 else 0.1,
            "ci_high": -0.4 if alpha == 4 else 0.4,
        }
        for name, alpha in {"oracle": 1.0, "reward_alone": 4.0, "chosen": chosen}.items()
    }
    facts = {"key": f"seed={seed} fraction=0.1", "seed": seed, "fraction": 0.1}
    return {**facts, "curves": curves, "picks": picks}


def test_gains_of_the_tables_are_those_of_the_prompts() -> None:
    text = render([line(0, chosen=1.0), line(1, chosen=1.0)])
    rows = [row.split(" | ") for row in text.splitlines() if row.startswith("| 1 |")]
    assert rows[0][1] == "0.750"
    assert rows[0][2].startswith("+0.250 [+0.1")
    assert "Seeds 0, 1; 40 prompts each." in text
    assert "recovers 100% of the oracle's gain: goal 70%, met." in text
    assert "highest mean reward: -0.500, significantly below the aligned model in 2" in text
    assert "guarded selection: +0.250, significantly below the aligned model in 0" in text


def test_a_missed_goal_is_told() -> None:
    assert "recovers 0% of the oracle's gain: goal 70%, missed." in render([line(0, chosen=0.0)])
    kept = line(0, chosen=0.0)
    kept["picks"]["oracle"] = kept["picks"]["chosen"]
    assert "there is nothing to recover" in render([kept])


def test_an_interval_over_seeds_is_wider_than_over_their_prompts() -> None:
    gains = [[0.1, 0.3] * 50, [-0.3, -0.1] * 50, [0.4, 0.6] * 50]
    mean, low, high = pooled(gains)
    assert mean == pytest.approx(1 / 6)
    _, narrow_low, narrow_high = pooled([[*gains[0], *gains[1], *gains[2]]])
    assert low < narrow_low < mean < narrow_high < high
    # Of one seed: as the standard error says.
    _, low, high = pooled(gains[:1])
    assert high - low == pytest.approx(2 * 1.96 * 0.1 / 10, rel=0.1)


def test_prompts_are_dealt_once() -> None:
    message = {"role": "user", "content": "?"}
    prompts = [Prompt(prompt_id=str(i), messages=(message,)) for i in range(10)]  # type: ignore[arg-type]
    parts = deal(prompts)
    assert [len(ids) for ids in parts.values()] == [5, 2, 3]
    assert [each for ids in parts.values() for each in ids] == [str(i) for i in range(10)]
