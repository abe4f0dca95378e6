from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from expo_ray.errors import EvaluationError, TableError
from expo_ray.selection import SelectionSettings, choose_alpha
from expo_ray.selection.search import SearchResult
from expo_ray.selection.unfit import keep_unfit
from tests.selection.tables import (
    CHAT_RESPONSES,
    Row,
    make_rows,
    noisy_rewards,
    responses_of,
    rewards_of,
)

SETTINGS = SelectionSettings(num_resamples=2000)


def choose(rows: list[Row], **settings: Any) -> dict[str, Any]:
    selection = choose_alpha(
        responses_of(rows),
        rewards_of(rows),
        settings=SETTINGS.model_copy(update=settings),
    )
    assert json.loads(json.dumps(selection, allow_nan=False)) == selection
    return selection


def candidate(selection: dict[str, Any], alpha: float) -> dict[str, Any]:
    found: dict[str, Any] = next(c for c in selection["candidates"] if c["alpha"] == alpha)
    return found


def fired(selection: dict[str, Any]) -> set[tuple[str, float, str]]:
    return {(g["name"], g["alpha"], g["split"]) for g in selection["guards"] if g["fired"]}


def test_numbers_by_hand() -> None:
    # Two samples a prompt. Prompt differences 2 and 4 (mean of 3 and 5): gain 3.
    rewards = {0.0: [1.0, 1.0, 2.0, 2.0], 0.5: [2.0, 4.0, 5.0, 7.0]}
    rows = make_rows(rewards, num_tuning=2, num_samples=2, tokens={0.0: 10, 0.5: 12})
    rows[4]["finish_reason"] = "length"
    selection = choose(rows)
    found = candidate(selection, 0.5)
    assert found["gain"] == 3.0
    assert found["mean_reward"] == 4.5
    assert (found["num_pairs"], found["num_errors"]) == (2, 0)
    assert (found["mean_tokens"], found["length_ratio"]) == (12.0, 1.2)
    assert found["truncation_rate"] == 0.25
    aligned = candidate(selection, 0.0)
    assert (aligned["gain"], aligned["gain_ci_low"], aligned["gain_ci_high"]) == (0, 0, 0)
    assert (aligned["mean_reward"], aligned["length_ratio"]) == (1.5, 1.0)
    assert (selection["num_tuning"], selection["num_heldout"]) == (2, 0)
    assert selection["verdict"] == "keep-aligned"
    assert "too few" in selection["reason"]


def test_a_clear_gain_is_chosen_and_confirmed() -> None:
    selection = choose(make_rows(noisy_rewards({0.3: 0.1, 1.0: 1.5}), num_tuning=60))
    assert (selection["best_alpha"], selection["verdict"]) == (1.0, "extrapolate")
    heldout = selection["heldout"]
    assert heldout["alpha"] == 1.0
    assert heldout["ci_low"] <= heldout["gain"] <= heldout["ci_high"]
    assert heldout["ci_low"] > 0
    assert heldout["p_value"] < 0.05
    assert heldout["num_pairs"] == 60
    assert selection["rejected_alpha"] is None
    assert "60 held-out prompts" in selection["reason"]


def test_contract_keys() -> None:
    selection = choose(make_rows(noisy_rewards({1.0: 1.5}), num_tuning=60))
    assert {
        "schema_version",
        "best_alpha",
        "verdict",
        "reason",
        "num_tuning",
        "num_heldout",
        "candidates",
        "guards",
        "heldout",
    } <= selection.keys()
    assert {
        "alpha",
        "num_pairs",
        "num_errors",
        "mean_reward",
        "ci_low",
        "ci_high",
        "gain",
        "gain_ci_low",
        "gain_ci_high",
        "mean_tokens",
        "length_ratio",
        "truncation_rate",
        "collapsed",
    } <= selection["candidates"][0].keys()
    assert {"name", "alpha", "value", "threshold", "fired"} <= selection["guards"][0].keys()
    assert {"alpha", "gain", "ci_low", "ci_high", "num_pairs", "p_value"} <= (
        selection["heldout"].keys()
    )
    # What is not evaluated is told in the same words.
    unfit = keep_unfit(["the models look unrelated"], SelectionSettings())
    assert unfit.keys() == selection.keys()
    assert unfit["candidates"][0].keys() == selection["candidates"][0].keys()
    assert unfit["heldout"].keys() == selection["heldout"].keys()


def test_no_gain_keeps_the_aligned_model() -> None:
    selection = choose(make_rows(noisy_rewards({0.5: 0.0, 1.0: -1.0}), num_tuning=60))
    assert (selection["best_alpha"], selection["verdict"]) == (0.0, "keep-aligned")
    assert selection["heldout"]["confirmed"] is False
    assert selection["rejected_alpha"] == 0.5
    assert "alpha 1 does not gain" in selection["reason"]


def test_without_effect_keep_aligned_nearly_always() -> None:
    # Both tests must err in the same direction: at most 2.5% of 2.5%, so 60 runs give none.
    verdicts = [
        choose(
            make_rows(
                noisy_rewards(
                    {0.1: 0.0, 0.3: 0.0, 1.0: 0.0}, num_tuning=30, num_heldout=30, seed=s
                ),
                num_tuning=30,
            ),
            num_resamples=1000,
        )["verdict"]
        for s in range(60)
    ]
    assert verdicts.count("extrapolate") <= 1


def test_a_winner_of_the_tuning_prompts_alone_is_not_confirmed() -> None:
    selection = choose(make_rows(noisy_rewards({1.0: (1.5, 0.0)}), num_tuning=60))
    assert candidate(selection, 1.0)["eligible"] is True
    assert (selection["best_alpha"], selection["verdict"]) == (0.0, "keep-aligned")
    assert selection["heldout"]["alpha"] == selection["rejected_alpha"] == 1.0
    assert "not confirmed" in selection["reason"]


def test_held_out_prompts_do_not_take_part_in_the_choice() -> None:
    # Alpha 2 would be far better on held-out prompts; the tuning prompts say alpha 1.
    gains = {1.0: (1.5, 1.5), 2.0: (0.5, 9.0)}
    selection = choose(make_rows(noisy_rewards(gains), num_tuning=60))
    assert selection["best_alpha"] == 1.0


def test_smallest_alpha_within_noise_of_the_best() -> None:
    rows = make_rows(noisy_rewards({1.0: 1.5, 2.0: 1.55, 5.0: 1.6}), num_tuning=60)
    assert choose(rows)["best_alpha"] == 1.0
    assert choose(rows, prefer="best")["best_alpha"] == max(
        (1.0, 2.0, 5.0), key=lambda a: candidate(choose(rows), a)["gain"]
    )
    clear = make_rows(noisy_rewards({1.0: 1.5, 2.0: 4.0}), num_tuning=60)
    assert choose(clear)["best_alpha"] == 2.0


def test_all_judges_order_the_candidates() -> None:
    rewards = noisy_rewards({1.0: 1.0, 2.0: 2.0, 5.0: 3.0})
    rows = make_rows(rewards, num_tuning=60)
    # The guard agrees in sign with every candidate, but is past its peak at 5; its rewards are a
    # hundred times as large, which must not count.
    means = {0.0: 0.0, 1.0: 50.0, 2.0: 150.0, 5.0: 5.0}
    changed = {a: [100 * r for r in noisy_rewards({a: m / 100})[a]] for a, m in means.items()}
    guard = rewards_of(make_rows(changed, num_tuning=60))

    def chosen(guard: pa.Table = guard, **settings: Any) -> dict[str, Any]:
        return choose_alpha(
            responses_of(rows),
            rewards_of(rows),
            settings=SETTINGS.model_copy(update=settings),
            guard_rewards={"guard": guard},
        )

    found = chosen()
    assert found["best_alpha"] == 2.0
    assert "in the mean of 2 reward models" in found["reason"]
    # The gain is that of the scoring reward model all the same.
    assert found["heldout"]["gain"] == pytest.approx(2.0, abs=0.5)
    assert chosen(rank_by="reward")["best_alpha"] == 5.0
    assert choose(rows)["best_alpha"] == 5.0
    # What the pair says of itself guards, but does not order.
    implicit = pa.array(["implicit:beta=0.1"] * guard.num_rows)
    place = guard.column_names.index("reward_model")
    assert chosen(guard.set_column(place, "reward_model", implicit))["best_alpha"] == 5.0


def test_equal_candidates_tie_to_the_smaller_alpha() -> None:
    rewards = noisy_rewards({1.0: 1.5})
    rewards[2.0] = rewards[1.0]
    rewards[-1.0] = rewards[1.0]
    for prefer in ("best", "smallest-within-noise"):
        assert choose(make_rows(rewards, num_tuning=60), prefer=prefer)["best_alpha"] == 1.0


def test_row_order_does_not_matter() -> None:
    rows = make_rows(noisy_rewards({0.3: 0.6, 1.0: 1.5}), num_tuning=60)
    shuffled = random.Random(4).sample(rows, len(rows))
    again = random.Random(5).sample(rows, len(rows))
    selections = [
        choose_alpha(responses_of(a), rewards_of(b), settings=SETTINGS)
        for a, b in ((rows, rows), (shuffled, again))
    ]
    assert selections[0] == selections[1]


def test_alphas_are_compared_after_float32_rounding() -> None:
    rows = make_rows(noisy_rewards({0.3: 1.5}), num_tuning=60)
    single = [
        row | {"alpha": float(np.float32(row["alpha"])), "weights_digest": row["weights_digest"]}
        for row in rows
    ]
    selection = choose_alpha(responses_of(rows), rewards_of(single), settings=SETTINGS)
    assert selection["best_alpha"] == 0.3


def test_longer_responses_are_stopped() -> None:
    rows = make_rows(
        noisy_rewards({1.0: 1.5, 3.0: 4.0}), num_tuning=60, tokens={0.0: 20, 1.0: 22, 3.0: 40}
    )
    selection = choose(rows)
    assert ("length-ratio", 3.0, "tuning") in fired(selection)
    assert selection["best_alpha"] == 1.0
    assert candidate(selection, 3.0)["stopped_by"] == ["length-ratio"]
    assert candidate(selection, 3.0)["collapsed"] is False
    assert choose(rows, max_length_ratio=None)["best_alpha"] == 3.0


def test_truncated_responses_are_a_collapse() -> None:
    def edit(row: Row) -> None:
        if row["alpha"] == 3.0 and row["prompt_id"].endswith(("0", "1")):
            row["finish_reason"] = "length"

    selection = choose(make_rows(noisy_rewards({3.0: 4.0}), num_tuning=60, edit=edit))
    assert fired(selection) >= {("truncation-rate", 3.0, "tuning")}
    assert candidate(selection, 3.0)["truncation_rate"] == 0.2
    assert candidate(selection, 3.0)["collapsed"] is True
    assert selection["verdict"] == "keep-aligned"


def test_truncation_that_the_aligned_model_has_too_is_allowed() -> None:
    def edit(row: Row) -> None:
        if row["prompt_id"].endswith(("0", "1")):
            row["finish_reason"] = "length"

    selection = choose(make_rows(noisy_rewards({1.0: 1.5}), num_tuning=60, edit=edit))
    assert selection["best_alpha"] == 1.0


def test_repeating_and_silent_candidates_are_a_collapse() -> None:
    def repeat(row: Row) -> None:
        if row["alpha"] == 3.0:
            row["response"] = "the same words again " * 8

    def silence(row: Row) -> None:
        if row["alpha"] == 3.0:
            row["completion_tokens"] = 1

    for edit, name in ((repeat, "repetition"), (silence, "short-responses")):
        selection = choose(make_rows(noisy_rewards({3.0: 4.0}), num_tuning=60, edit=edit))
        assert fired(selection) >= {(name, 3.0, "tuning")}
        assert candidate(selection, 3.0)["collapsed"] is True


def test_a_guard_that_fires_on_held_out_prompts_stops_too() -> None:
    def edit(row: Row) -> None:
        if row["split"] == "heldout" and row["alpha"] == 1.0:
            row["completion_tokens"] = 100

    selection = choose(make_rows(noisy_rewards({1.0: 1.5}), num_tuning=60, edit=edit))
    assert fired(selection) == {("length-ratio", 1.0, "heldout")}
    assert selection["verdict"] == "keep-aligned"
    assert "5.00 times as long" in selection["reason"]


def test_the_next_smaller_candidate_has_its_turn_after_a_guard() -> None:
    # Alpha 2 gains most, and on held-out prompts it no longer ends.
    def edit(row: Row) -> None:
        if row["split"] == "heldout" and row["alpha"] == 2.0:
            row["finish_reason"] = "length"

    rewards = noisy_rewards({0.5: 0.6, 1.0: 1.0, 2.0: 3.0})
    selection = choose(make_rows(rewards, num_tuning=60, edit=edit))
    assert (selection["best_alpha"], selection["verdict"]) == (1.0, "extrapolate")
    assert (selection["tried_alpha"], selection["rejected_alpha"]) == (1.0, None)
    tried = [(one["alpha"], one["outcome"]) for one in selection["heldout_sequence"]]
    assert tried == [(2.0, "stopped"), (1.0, "confirmed")]
    assert selection["heldout"]["alpha"] == 1.0 and selection["heldout"]["confirmed"] is True
    assert fired(selection) == {("truncation-rate", 2.0, "heldout")}
    assert selection["reason"].startswith("alpha 2 gained on the tuning prompts, but")
    assert "then alpha 1 raises the mean reward" in selection["reason"]


def test_a_search_learns_step_by_step_who_answers_held_out_prompts() -> None:
    def edit(row: Row) -> None:
        if row["split"] == "heldout" and row["alpha"] == 2.0:
            row["finish_reason"] = "length"

    rows = make_rows(noisy_rewards({0.5: 0.6, 1.0: 1.0, 2.0: 3.0}), num_tuning=60, edit=edit)
    answered, tried = {0.0}, []
    for _ in range(3):
        known = [r for r in rows if r["split"] == "tuning" or r["alpha"] in answered]
        selection = choose(known)
        tried.append(selection["tried_alpha"])
        answered.add(selection["tried_alpha"])
    assert tried == [2.0, 1.0, 1.0]
    assert selection["best_alpha"] == 1.0


def test_a_gain_that_is_luck_leaves_no_second_try() -> None:
    gains = {1.0: (1.0, 1.0), 2.0: (3.0, 0.0)}
    selection = choose(make_rows(noisy_rewards(gains), num_tuning=60))
    assert selection["verdict"] == "keep-aligned"
    assert [one["alpha"] for one in selection["heldout_sequence"]] == [2.0]
    # A share of the error rate that is kept for the next one finds it.
    kept = choose(make_rows(noisy_rewards(gains), num_tuning=60), heldout_reserve=0.2)
    assert kept["best_alpha"] == 1.0
    assert [one["level"] for one in kept["heldout_sequence"]] == pytest.approx([0.04, 0.01])


def test_lengths_that_were_not_recorded_stop_a_candidate() -> None:
    rows = make_rows(noisy_rewards({1.0: 1.5}), num_tuning=60)
    for row in rows:
        row["completion_tokens"] = None
    selection = choose(rows)
    assert selection["verdict"] == "keep-aligned"
    assert ("length-ratio", 1.0, "tuning") in fired(selection)


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_null_rewards_disqualify(value: float | None) -> None:
    rewards = noisy_rewards({1.0: 1.5, 2.0: 3.0})
    rewards[2.0][:2] = [value, value]  # 2 of 60 tuning prompts
    selection = choose(make_rows(rewards, num_tuning=60))
    assert selection["best_alpha"] == 1.0
    found = candidate(selection, 2.0)
    assert (found["num_errors"], found["num_pairs"]) == (2, 58)
    assert found["stopped_by"] == ["null-rewards"]


def test_one_percent_of_null_rewards_is_allowed() -> None:
    rewards = noisy_rewards({1.0: 1.5}, num_tuning=100)
    rewards[1.0][7] = None
    rewards[0.0][8] = None
    selection = choose(make_rows(rewards, num_tuning=100))
    assert selection["best_alpha"] == 1.0
    assert candidate(selection, 1.0)["num_pairs"] == 98


def test_missing_rows_count_as_null_rewards() -> None:
    rows = make_rows(noisy_rewards({1.0: 1.5, 2.0: 3.0}), num_tuning=60)
    kept = [r for r in rows if not (r["alpha"] == 2.0 and r["prompt_id"] < "p0030")]
    selection = choose(kept)
    assert candidate(selection, 2.0)["num_errors"] == 30
    assert selection["best_alpha"] == 1.0


def test_nulls_of_the_aligned_model_end_the_selection() -> None:
    rewards = noisy_rewards({1.0: 1.5})
    rewards[0.0][:2] = [None, None]
    with pytest.raises(EvaluationError, match="aligned model are null"):
        choose(make_rows(rewards, num_tuning=60))


def test_guard_reward_models_must_agree_in_sign() -> None:
    rewards = noisy_rewards({1.0: 1.5, 3.0: 4.0})
    rows = make_rows(rewards, num_tuning=60)
    opposed = make_rows(noisy_rewards({1.0: 1.0, 3.0: -1.0}, seed=9), num_tuning=60)
    selection = choose_alpha(
        responses_of(rows),
        rewards_of(rows),
        settings=SETTINGS,
        guard_rewards={"second": rewards_of(opposed)},
    )
    assert fired(selection) == {("reward-model second", 3.0, "tuning")}
    assert selection["best_alpha"] == 1.0
    weak = make_rows(noisy_rewards({1.0: 0.05, 3.0: 0.05}, seed=3), num_tuning=60)
    strict = choose_alpha(
        responses_of(rows),
        rewards_of(rows),
        settings=SETTINGS.model_copy(update={"guard_agreement": "significant"}),
        guard_rewards={"second": rewards_of(weak)},
    )
    assert strict["verdict"] == "keep-aligned"


def test_a_guard_without_rewards_stops_everything() -> None:
    rows = make_rows(noisy_rewards({1.0: 1.5}), num_tuning=60)
    silent = [row | {"reward": None} for row in rows]
    selection = choose_alpha(
        responses_of(rows),
        rewards_of(rows),
        settings=SETTINGS,
        guard_rewards={"second": rewards_of(silent)},
    )
    assert ("reward-model second", 1.0, "tuning") in fired(selection)
    assert selection["verdict"] == "keep-aligned"


def test_gains_within_the_noise_of_the_scores_are_no_gains() -> None:
    rows = make_rows(noisy_rewards({1.0: 0.5}, noise=0.1), num_tuning=60)
    assert choose(rows, min_gain=0.1)["best_alpha"] == 1.0
    assert choose(rows, min_gain=0.6)["verdict"] == "keep-aligned"


def test_many_candidates_need_a_clearer_gain() -> None:
    gains = {1.0: 0.36} | {float(alpha): -5.0 for alpha in range(2, 22)}
    rows = make_rows(noisy_rewards(gains, seed=2), num_tuning=60)
    found = candidate(choose(rows), 1.0)
    assert found["p_value"] <= 0.05
    assert candidate(choose(rows, correction="none"), 1.0)["eligible"] is True
    assert candidate(choose(rows, correction="bonferroni"), 1.0)["eligible"] is False


def test_the_edge_of_the_grid_is_pointed_out() -> None:
    rows = make_rows(noisy_rewards({1.0: 1.0, 2.0: 3.0}), num_tuning=60)
    assert "largest alpha tried (2)" in choose(rows)["warnings"][0]
    rows = make_rows(noisy_rewards({1.0: 3.0, 2.0: 1.0}), num_tuning=60)
    assert choose(rows)["warnings"] == []


def test_an_edge_that_a_second_reward_model_does_not_want_is_none() -> None:
    rows = make_rows(noisy_rewards({1.0: 1.0, 2.0: 1.2}), num_tuning=60)
    second = make_rows(noisy_rewards({1.0: 1.0, 2.0: 0.1}, seed=1), num_tuning=60)
    chosen = choose_alpha(
        responses_of(rows), rewards_of(rows), guard_rewards={"second": rewards_of(second)}
    )
    assert candidate(chosen, 2.0)["mean_reward"] > candidate(chosen, 1.0)["mean_reward"]
    assert (chosen["best_alpha"], chosen["warnings"]) == (1.0, [])


def test_a_verdict_of_the_pair_on_itself_is_pointed_out() -> None:
    rows = make_rows(noisy_rewards({1.0: 3.0, 2.0: 1.0}), num_tuning=60)

    def named(name: str) -> pa.Table:
        return rewards_of([{**row, "reward_model": name} for row in rows])

    implicit, other = named("implicit:beta=0.1"), named("rm")
    for scoring, guards, warned in (
        (implicit, {}, True),
        (implicit, {"g": named("implicit:beta=1")}, True),
        (implicit, {"g": other}, False),
        (other, {"g": implicit}, False),
        (other, {}, False),
    ):
        chosen = choose_alpha(responses_of(rows), scoring, guard_rewards=guards)
        assert any("circle" in warning for warning in chosen["warnings"]) is warned


def test_length_controlled_gain_removes_what_length_explains() -> None:
    # The reward rises by 0.1 a token and by nothing else.
    rng = np.random.default_rng(0)
    extra = rng.integers(0, 6, 120)
    rows = make_rows({0.0: [0.0] * 120, 1.0: list(extra * 0.1)}, num_tuning=60)
    for row, more in zip(rows[120:], extra, strict=True):
        row["completion_tokens"] = 20 + int(more)
    found = candidate(choose(rows), 1.0)
    assert found["gain"] > 0.2
    assert found["length_controlled_gain"] == pytest.approx(0.0, abs=1e-9)


def test_only_the_aligned_model() -> None:
    selection = choose(make_rows({0.0: [1.0] * 20}, num_tuning=10))
    assert (selection["best_alpha"], selection["verdict"]) == (0.0, "keep-aligned")
    assert selection["reason"] == "there is no candidate besides the aligned model"
    assert selection["rejected_alpha"] is None
    assert len(selection["candidates"]) == 1


def test_no_held_out_prompts_means_no_confirmation() -> None:
    selection = choose(make_rows(noisy_rewards({1.0: 1.5}, num_heldout=0), num_tuning=60))
    assert selection["verdict"] == "keep-aligned"
    assert "too few to confirm" in selection["reason"]
    assert selection["heldout"]["gain"] is None


def test_one_prompt_each() -> None:
    selection = choose(make_rows({0.0: [0.0, 0.0], 1.0: [9.0, 9.0]}, num_tuning=1))
    assert selection["verdict"] == "keep-aligned"
    assert candidate(selection, 1.0)["gain_ci_low"] is None


def change(rows: list[Row], **values: Any) -> list[Row]:
    return [*rows[:-1], rows[-1] | values]


def test_malformed_tables_are_refused() -> None:
    rows = make_rows(noisy_rewards({1.0: 1.5}), num_tuning=60)
    bad: dict[str, tuple[list[Row], list[Row]]] = {
        "aligned model itself is missing": (rows[120:], rows[120:]),
        "two rows for the same": ([*rows, rows[0]], rows),
        "without an alpha": (change(rows, alpha=None), rows),
        "different weights": (change(rows, weights_digest="other"), rows),
        "no known split": (change(rows, split="test"), rows),
        "both a tuning and a held-out": (change(rows, split="tuning"), rows),
        "several reward models": (rows, change(rows, reward_model="other")),
        "belongs to no response": (rows, change(rows, weights_digest="stale")),
    }
    for message, (responses, rewards) in bad.items():
        with pytest.raises(TableError, match=message):
            choose_alpha(responses_of(responses), rewards_of(rewards), settings=SETTINGS)
    with pytest.raises(TableError, match="lacks columns") as error:
        choose_alpha(responses_of(rows), rewards_of(rows).drop_columns(["reward"]))
    assert error.value.got == "no reward"
    with pytest.raises(TableError, match="aligned model itself is missing"):
        choose_alpha(responses_of([]), rewards_of([]))


def chats(rows: list[Row], edit: Callable[[Row], None]) -> pa.Table:
    for row in rows:
        row["messages"] = [{"role": "user", "content": QUESTION}]
        row["response"] = ANSWER
        if row["alpha"] == 3.0:
            edit(row)
    return pa.Table.from_pylist(rows, schema=CHAT_RESPONSES)


QUESTION = "Tell me in two sentences how a loaf of bread is made at home."
ANSWER = (
    "Mix flour, water, salt and yeast, and knead the dough until it is smooth. Let it rise for "
    "some hours, then bake it in a hot oven until the crust is brown."
)
OTHER_LANGUAGE = (
    "Mische Mehl, Wasser, Salz und Hefe und knete den Teig, bis er glatt ist. Lass ihn einige "
    "Stunden gehen und backe ihn dann im heissen Ofen, bis die Kruste braun ist."
)


@pytest.mark.parametrize(
    ("name", "text", "switch"),
    [
        ("prompt-echo", QUESTION, "max_echo_increase"),
        ("special-tokens", f"{ANSWER}<|im_end|>", "max_special_token_increase"),
        ("language-drift", OTHER_LANGUAGE, "max_language_drift_increase"),
    ],
)
def test_broken_text_stops_a_candidate(name: str, text: str, switch: str) -> None:
    def edit(row: Row) -> None:
        if row["prompt_id"].endswith(("0", "5")):
            row["response"] = text

    rows = make_rows(noisy_rewards({1.0: 1.5, 3.0: 4.0}), num_tuning=60)
    responses = chats(rows, edit)
    selection = choose_alpha(responses, rewards_of(rows), settings=SETTINGS)
    assert fired(selection) == {(name, 3.0, "tuning")}
    assert candidate(selection, 3.0)["collapsed"] is True
    assert selection["best_alpha"] == 1.0
    [guard] = [g for g in selection["guards"] if g["fired"]]
    assert guard["value"] == 0.2
    assert "20% of the responses" in guard["reason"]
    off = SETTINGS.model_copy(update={switch: None})
    assert choose_alpha(responses, rewards_of(rows), settings=off)["best_alpha"] == 3.0


def test_signs_of_broken_text_that_the_aligned_model_shows_too_are_allowed() -> None:
    rows = make_rows(noisy_rewards({3.0: 4.0}), num_tuning=60)
    responses = chats(rows, lambda row: None)
    echoed = pa.array([QUESTION] * len(rows))
    index = responses.column_names.index("response")
    selection = choose_alpha(
        responses.set_column(index, "response", echoed), rewards_of(rows), settings=SETTINGS
    )
    assert selection["best_alpha"] == 3.0


def test_a_gain_that_is_all_length_is_stopped() -> None:
    rng = np.random.default_rng(0)
    extra = rng.integers(1, 6, 120)
    rows = make_rows({0.0: [0.0] * 120, 1.0: list(extra * 0.1 - 0.05)}, num_tuning=60)
    for row, more in zip(rows[120:], extra, strict=True):
        row["completion_tokens"] = 20 + int(more)
    selection = choose(rows)
    assert fired(selection) >= {("length-controlled-gain", 1.0, "tuning")}
    assert {guard["name"] for guard in selection["guards"] if guard["fired"]} == {
        "length-controlled-gain"
    }
    assert "at equal length" in selection["guards"][-1]["reason"]
    assert choose(rows, min_length_controlled_gain=None)["best_alpha"] == 1.0


def test_the_spread_of_the_scores_is_no_gain() -> None:
    rows = make_rows(noisy_rewards({1.0: 0.5}, noise=0.1), num_tuning=60)
    tables = responses_of(rows), rewards_of(rows)
    fine = choose_alpha(*tables, settings=SETTINGS, measurement_spread=0.1)
    assert (fine["best_alpha"], fine["measurement_spread"]) == (1.0, 0.1)
    within = choose_alpha(*tables, settings=SETTINGS, measurement_spread=0.6)
    assert within["verdict"] == "keep-aligned"
    assert "up to 0.6 is no gain" in within["reason"]


def found_by(strategy: str, dropped: dict[float, str], answered: dict[float, int]) -> SearchResult:
    return SearchResult(
        strategy=strategy, num_tuning=60, num_answered=answered, dropped=dropped, looks=()
    )


def test_a_dropped_candidate_is_measured_on_what_it_answered_and_cannot_be_chosen() -> None:
    rows = make_rows(noisy_rewards({1.0: 1.5, 2.0: 3.0}), num_tuning=60)
    kept = [r for r in rows if not (r["alpha"] == 2.0 and r["prompt_id"] >= "p0020")]
    search = found_by("racing", {2.0: "after 20 prompts"}, {0.0: 60, 1.0: 60, 2.0: 20})
    selection = choose_alpha(responses_of(kept), rewards_of(kept), settings=SETTINGS, search=search)
    assert selection["best_alpha"] == selection["tried_alpha"] == 1.0
    found = candidate(selection, 2.0)
    assert (found["num_pairs"], found["num_errors"], found["stopped_by"]) == (20, 0, [])
    assert (found["dropped"], found["eligible"]) == ("after 20 prompts", False)
    assert selection["search"]["tuning_answers"] == 140
    # It was looked at, so it counts: the other's p-value is doubled.
    first = candidate(selection, 1.0)
    assert first["p_adjusted"] == pytest.approx(2 * first["p_value"])


def test_nothing_tried_says_so() -> None:
    rows = make_rows(noisy_rewards({1.0: -1.5}), num_tuning=60)
    assert choose(rows)["tried_alpha"] is None
