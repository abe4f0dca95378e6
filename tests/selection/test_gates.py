from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from expo_ray.errors import EvaluationError
from expo_ray.selection import SelectionSettings, choose_alpha
from expo_ray.selection.gates import Gate, Scores, check_gate, gate_confidence
from expo_ray.selection.guard_findings import Guard
from expo_ray.selection.sample_size import prompts_for_margin
from tests.selection import tables

SETTINGS = SelectionSettings(num_resamples=1000, no_worse_than={"gsm": 0.02})


def scores(gained: int, lost: int, right: int, wrong: int, name: str = "gsm") -> Scores:
    aligned = [0.0] * gained + [1.0] * lost + [1.0] * right + [0.0] * wrong
    candidate = [1.0] * gained + [0.0] * lost + [1.0] * right + [0.0] * wrong
    return Scores(name=name, prompts=name, reward_model="0-check-number",
                  aligned=np.array(aligned), candidate=np.array(candidate))  # fmt: skip


def ask(given: Scores, settings: SelectionSettings = SETTINGS) -> tuple[Gate, Guard]:
    gate, guard = check_gate(given, 0.3, settings)
    assert guard is not None
    return gate, guard


def test_an_equal_candidate_passes_where_there_are_prompts_enough() -> None:
    gate, guard = ask(scores(20, 20, 1400, 560))
    assert (gate.verdict, guard.fired) == ("no-worse", False)
    assert gate.ci_low is not None and -0.02 < gate.ci_low < 0 == gate.difference
    assert gate.num_needed == prompts_for_margin(
        0.02, 0.02, power=0.8, confidence=0.95, proportions=True
    )


def test_few_prompts_cannot_tell_and_that_is_no_permission() -> None:
    gate, guard = ask(scores(2, 2, 100, 50))
    assert (gate.verdict, guard.fired) == ("cannot-tell", True)
    assert gate.num_needed is not None and gate.num_needed > 154
    assert f"from 154 prompts it cannot be told, about {gate.num_needed} would" in gate.reason


def test_a_loss_beyond_the_margin_is_worse() -> None:
    gate, guard = ask(scores(10, 90, 1400, 500))
    assert (gate.verdict, guard.fired) == ("worse", True)
    assert gate.ci_high is not None and gate.ci_high < -0.02


def test_a_missing_score_of_the_candidate_is_as_bad_as_a_wrong_answer() -> None:
    given = scores(0, 10, 990, 0)
    given.candidate[:20] = [*[0.0] * 10, *[np.nan] * 10]  # 10 wrong and 10 without a score
    gate, _ = ask(given)
    assert gate.difference == pytest.approx(-0.02)
    assert (gate.verdict, gate.num_missing) == ("cannot-tell", 10)


def test_a_small_loss_within_the_margin_passes() -> None:
    gate, _ = ask(scores(10, 30, 2400, 1560))
    assert gate.ci_high is not None and gate.ci_high < 0
    assert gate.verdict == "no-worse"


def shares(aligned: np.ndarray, candidate: np.ndarray) -> Scores:
    return Scores(name="gsm", prompts="gsm", reward_model="0-check", aligned=aligned,
                  candidate=candidate)  # fmt: skip


def test_shares_of_several_answers_are_compared_by_their_mean() -> None:
    rng = np.random.default_rng(1)
    aligned, candidate = rng.binomial(4, 0.5, (2, 2000)) / 4
    wide = SETTINGS.model_copy(update={"no_worse_than": {"gsm": 0.05}})
    gate, _ = ask(shares(aligned, candidate), wide)
    assert gate.verdict == "no-worse"
    error = (candidate - aligned).std(ddof=1) / np.sqrt(2000)
    # A little wider than Student's, for the whole failures that 2,000 prompts may not show.
    assert gate.ci_low is not None
    reach = ((candidate - aligned).mean() - gate.ci_low) / error
    assert 1.961 < reach < 2.2


def test_equal_shares_of_few_prompts_are_no_proof() -> None:
    for size, verdict in ((10, "cannot-tell"), (188, "cannot-tell"), (189, "no-worse")):
        same = np.tile([0.25, 0.75, 1.0], size)[:size]
        gate, guard = ask(shares(same, same))
        assert (gate.verdict, guard.fired) == (verdict, verdict == "cannot-tell")
        assert gate.difference == 0.0
        assert gate.num_needed == 189


def test_rare_whole_failures_seldom_pass_by_shares() -> None:
    rng = np.random.default_rng(4)
    for size in (20, 50, 100, 200, 400):
        passed = 0
        for _ in range(200):
            same = np.full(size, 0.75)
            same[: size // 2] = 1.0
            failed = rng.random(size) < 0.02 / same.mean()
            passed += ask(shares(same, np.where(failed, 0.0, same)))[0].verdict == "no-worse"
        assert passed <= 10, size


def test_scores_that_do_not_scatter_tell_nothing() -> None:
    same = np.linspace(-3, 3, 500)
    gate, guard = ask(shares(same, same))
    assert (gate.verdict, guard.fired, gate.num_needed) == ("cannot-tell", True, None)
    assert "do not scatter" in gate.reason


def test_a_margin_beyond_scores_of_0_to_1_is_told() -> None:
    wide = SETTINGS.model_copy(update={"no_worse_than": {"gsm": 1.5}})
    gate, _ = ask(scores(10, 90, 100, 100), wide)
    assert gate.reason.endswith(
        "all scores lie between 0 and 1, so that a margin of 1.5 asks nothing"
    )
    beyond, _ = ask(shares(np.linspace(0, 9, 50), np.linspace(0, 9, 50)[::-1].copy()), wide)
    assert "asks nothing" not in beyond.reason


def test_missing_scores_are_no_permission() -> None:
    given = scores(0, 0, 1500, 500)
    given.candidate[:60] = np.nan
    gate, guard = ask(given)
    assert (gate.verdict, guard.fired) == ("cannot-tell", True)
    assert (gate.num_prompts, gate.num_missing) == (2000, 60)
    assert gate.difference == pytest.approx(-0.03)  # shown, not judged


def test_a_set_without_a_margin_is_reported() -> None:
    gate, guard = check_gate(scores(20, 30, 100, 50, name="code"), 0.3, SETTINGS)
    assert guard is None
    assert (gate.verdict, gate.margin, gate.num_needed) == (None, None, None)
    assert gate.difference == pytest.approx(-0.05)


def choice(
    answers: dict[float, Scores] | None,
    *,
    right: Sequence[float] | None = None,
    margins: dict[str, float] | None = None,
    report_only: Sequence[str] = (),
    cut_off: float | None = None,
) -> tuple[dict[str, Any], list[float]]:
    """Choose among alpha 0.3 and 0.6, which both gain; the sets say what `answers` holds.

    Held-out answers of the candidate `cut_off` run into the token limit, which a guard stops.
    """

    def edit(row: tables.Row) -> None:
        if row["alpha"] == cut_off and row["split"] == "heldout":
            row["finish_reason"] = "length"

    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.2, 80)
    rewards = {0.0: noise, 0.3: noise + 0.5 + rng.normal(0, 0.1, 80),
               0.6: noise + 1.0 + rng.normal(0, 0.1, 80)}  # fmt: skip
    rows = tables.make_rows({a: list(map(float, r)) for a, r in rewards.items()}, num_tuning=40,
                            edit=edit)  # fmt: skip
    guards = {}
    if right is not None:
        checked = [
            {**row, "reward": (1.0 if row["alpha"] == 0 else right[int(row["prompt_id"][1:])]),
             "reward_model": "check:number"}
            for row in rows
        ]  # fmt: skip
        guards = {"1-check-number": tables.rewards_of(checked)}
    asked: list[float] = []

    def measure(alpha: float) -> list[Scores]:
        asked.append(alpha)
        assert answers is not None
        return [answers[alpha]]

    found = choose_alpha(
        tables.responses_of(rows),
        tables.rewards_of(rows),
        settings=SelectionSettings(
            num_resamples=1000, no_worse_than=margins or {}, report_only=list(report_only)
        ),
        guard_rewards=guards,
        prompt_sets=None if answers is None else measure,
    )
    return found, asked


def test_the_gate_stops_the_best_candidate_and_the_next_one_has_its_turn() -> None:
    answers = {0.6: scores(10, 90, 1400, 500), 0.3: scores(20, 20, 1400, 560)}
    found, asked = choice(answers, margins={"gsm": 0.02})
    assert asked == [0.6, 0.3]
    assert found["best_alpha"] == 0.3
    assert [(gate["alpha"], gate["verdict"]) for gate in found["gates"]] == [
        (0.6, "worse"), (0.3, "no-worse"),
    ]  # fmt: skip
    [first, _] = found["heldout_sequence"]
    assert first["stopped_by"] == ["no-worse-than gsm"]


def test_a_set_is_not_asked_of_whom_the_main_prompts_have_stopped() -> None:
    margins = {"gsm": 0.02, "1-check-number": 0.15}
    answers = {0.3: scores(20, 20, 1400, 560)}
    found, asked = choice(answers, margins=margins, right=[1.0] * 80, cut_off=0.6)
    assert asked == [0.3] and found["best_alpha"] == 0.3
    # Gates on the main prompts cost nothing, and are told of all the same.
    assert [(gate["alpha"], gate["name"], gate["confidence"]) for gate in found["gates"]] == [
        (0.6, "1-check-number", 0.95), (0.3, "1-check-number", 0.95), (0.3, "gsm", 0.95),
    ]  # fmt: skip
    wrong = [0.0] * 80
    found, asked = choice(answers, margins=margins, right=wrong)
    assert asked == [] and found["verdict"] == "keep-aligned"
    assert [one["stopped_by"] for one in found["heldout_sequence"]] == [
        ["no-worse-than 1-check-number"]
    ] * 2  # fmt: skip


def test_later_candidates_share_as_much_error_as_the_first_has() -> None:
    for length in (2, 3, 8):
        errors = [1 - gate_confidence(i, length, 0.95) for i in range(length)]
        assert errors[0] == pytest.approx(0.05)
        assert sum(errors) == pytest.approx(0.1)
        assert len({round(error, 9) for error in errors[1:]}) == 1
    assert gate_confidence(0, 1, 0.95) == 0.95


def test_what_cannot_be_told_keeps_the_aligned_model() -> None:
    few = scores(1, 1, 30, 10)
    found, _ = choice({0.6: few, 0.3: few}, margins={"gsm": 0.02})
    assert found["verdict"] == "keep-aligned"
    assert "from 42 prompts it cannot be told" in str(found["reason"])


def test_prompts_enough_for_an_equal_model_may_not_tell_of_one_that_loses_a_little() -> None:
    gate, _ = check_gate(scores(40, 60, 400, 500), 0.3, SETTINGS)
    assert gate.verdict == "cannot-tell"
    assert gate.num_needed is not None and gate.num_needed > gate.num_prompts
    assert f"about {gate.num_needed:,} would show" in gate.reason
    wide = SETTINGS.model_copy(update={"no_worse_than": {"gsm": 0.04}})
    gate, _ = check_gate(scores(40, 60, 400, 500), 0.3, wide)
    assert gate.verdict == "cannot-tell"
    assert gate.num_needed is not None and gate.num_needed <= gate.num_prompts
    assert "this one may lose something" in gate.reason and "about" not in gate.reason


def test_a_gate_on_the_main_prompts_asks_for_less_than_a_guard() -> None:
    equal = [1.0] * 80
    guarded, _ = choice(None, right=equal)
    assert guarded["verdict"] == "keep-aligned"  # nothing gained by the second reward model
    gated, _ = choice(None, right=equal, margins={"1-check-number": 0.15})
    assert gated["best_alpha"] == 0.6
    [gate] = gated["gates"]
    assert (gate["prompts"], gate["num_prompts"], gate["verdict"]) == ("main", 40, "no-worse")


def test_what_is_only_reported_stops_nobody_and_is_told() -> None:
    wrong = [0.0] * 80
    stopped, _ = choice(None, right=wrong)
    assert stopped["verdict"] == "keep-aligned"
    found, _ = choice(None, right=wrong, report_only=("1-check-number",))
    assert found["best_alpha"] == 0.6
    assert not any("1-check-number" in guard["name"] for guard in found["guards"])
    aligned, *others = found["candidates"]
    assert aligned["reported"] == []
    for candidate in others:
        [row] = candidate["reported"]
        assert (row["reward_model"], row["gain"], row["num_prompts"]) == ("1-check-number", -1, 40)
    [told] = found["gates"]
    assert (told["verdict"], told["margin"], told["difference"]) == (None, None, -1)


def test_what_is_only_reported_orders_nobody() -> None:
    # As a second judge it would put 0.3 first: there is no order in what decides nothing.
    found, _ = choice(None, right=[1.0] * 80, report_only=("1-check-number",))
    assert "reward models" not in found["reason"] and found["best_alpha"] == 0.6


def test_a_gate_that_names_nothing_is_refused() -> None:
    with pytest.raises(EvaluationError, match="nothing to measure"):
        choice(None, margins={"gsm": 0.02})
