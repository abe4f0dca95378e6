"""The gate in the laboratory: what it counts, and that a rerun does what is missing."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gate_laboratory import FROZEN, deal, read_lines, run_seeds
from benchmarks.gate_laboratory_page import PICKS, render

MICRO = replace(
    FROZEN,
    lab=FROZEN.lab.model_copy(
        update={
            "num_eval_prompts": 80,
            "num_sft_examples": 64,
            "preference_fraction": 0.01,
            "num_reward_pairs": 32,
            "max_new_tokens": 4,
        }
    ),
    alphas=(0.0, 1.0),
    num_main=40,
    num_gate=12,
    num_oracle=12,
    num_truth=12,
)


def line(seed: int, alone: float, gated: float, p_value: float) -> dict[str, Any]:
    def gain(mean: float, p: float) -> dict[str, float]:
        return {"gain": mean, "ci_low": mean - 0.02, "ci_high": mean + 0.02, "p_value": p}

    return {
        "seed": seed,
        "digest": FROZEN.digest(),
        "aligned_right": 0.6,
        "differing": 0.2,
        "picks": {name: {"alpha": 2.0, "reward": 1.5} for name in PICKS},
        "truth": {name: gain(gated, 1.0) for name in PICKS}
        | {"reward alone": gain(alone, p_value)},
        "gates": [{"alpha": 4.0, "verdict": "worse"}, {"alpha": 2.0, "verdict": "no-worse"}],
    }


def test_no_prompt_serves_two_parts_and_seeds_deal_anew() -> None:
    parts = [deal(FROZEN, FROZEN.lab_of(seed), seed) for seed in (0, 1)]
    texts = [
        {name: [p.messages[0]["content"] for p, _ in part] for name, part in one.items()}
        for one in parts
    ]
    assert {name: len(part) for name, part in parts[0].items()} == {
        "main": 200, "gate": 600, "oracle": 400, "truth": 800,
    }  # fmt: skip
    for first, second in combinations(texts[0].values(), 2):
        assert not set(first) & set(second)
    assert texts[0] != texts[1]
    assert texts[0] == {
        name: [p.messages[0]["content"] for p, _ in part]
        for name, part in deal(FROZEN, FROZEN.lab_of(0), 0).items()
    }


def test_the_page_counts_who_is_worse_and_lists_every_seed() -> None:
    lines = [line(1, -0.2, 0.01, 0.001), line(2, -0.1, 0.0, 0.04), line(3, 0.1, 0.0, 0.03)]
    page = render(lines, FROZEN, num_expected=20)
    assert "Finished: 3 of 20 seeds." in page
    assert "3 times that it is worse" in page
    assert "| reward alone | +1.50 | -0.067 | 2 | 1 | 2 | 2 |" in page
    assert "| guarded, gate | +1.50 | +0.003 | 0 | 0 | 0 | 0 |" in page
    slightly = render([line(1, -0.06, -0.06, 0.001)], FROZEN, num_expected=20)
    assert "| reward alone | +1.50 | -0.060 | 1 | 1 | 1 | 0 |" in slightly
    assert "| 2 | 0.60 | 2 (+1.50) | -0.100 [-0.120, -0.080] |" in page
    assert "| 4: worse, 2: no-worse |" in page


def test_a_rerun_does_what_is_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output, cache = tmp_path / "lines.jsonl", tmp_path / "cache"
    run_seeds(MICRO, [0], output=output, cache=cache)
    first = json.loads(output.read_text())
    assert set(first["picks"]) == set(first["truth"]) == set(PICKS)
    assert first["picks"]["oracle"]["alpha"] in MICRO.alphas
    capsys.readouterr()
    run_seeds(MICRO, [0], output=output, cache=cache)
    assert capsys.readouterr().out == ""
    assert read_lines(output, MICRO) == [first]
    with pytest.raises(SystemExit, match="other settings"):
        read_lines(output, FROZEN)
