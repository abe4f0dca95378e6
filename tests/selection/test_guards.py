from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest

from expo_ray.selection import SelectionSettings, choose_alpha
from expo_ray.selection.guard_findings import Guard
from expo_ray.selection.guards import check_guards
from expo_ray.selection.measured_tables import measure_tables
from expo_ray.selection.samples import join_tables
from tests.selection.tables import (
    CHAT_RESPONSES,
    Row,
    make_rows,
    noisy_rewards,
    rewards_of,
)

ANSWER = (
    "Mix flour, water, salt and yeast, and knead the dough until it is smooth. Let it rise for "
    "some hours, then bake it in a hot oven until the crust is brown."
)
QUESTION = "Tell me in two sentences how a loaf of bread is made at home."
SETTINGS = SelectionSettings(num_resamples=1000)


def table(
    edit: Callable[[int, Row], None], num_prompts: int, gain: float = 1.0
) -> tuple[pa.Table, pa.Table]:
    """Answers of alpha 0 and 1 to tuning prompts; `edit` sees the number of the prompt."""
    rewards = noisy_rewards({1.0: gain}, num_tuning=num_prompts, num_heldout=num_prompts)

    def change(row: Row) -> None:
        row["messages"] = [{"role": "user", "content": QUESTION}]
        row["response"] = ANSWER
        edit(int(row["prompt_id"][1:]) % num_prompts, row)

    rows = make_rows(rewards, num_tuning=num_prompts, edit=change)
    return pa.Table.from_pylist(rows, schema=CHAT_RESPONSES), rewards_of(rows)


def guard(name: str, edit: Callable[[int, Row], None], num_prompts: int, **settings: Any) -> Guard:
    samples = join_tables(*table(edit, num_prompts), {})["tuning"]
    rules = SETTINGS.model_copy(update=settings)
    found = check_guards(samples, 1.0, split="tuning", settings=rules)
    return next(one for one in found if one.name == name)


def cut_off(aligned: int, candidate: int) -> Callable[[int, Row], None]:
    """Cut off the answers to the first prompts, so many of each model."""

    def edit(prompt: int, row: Row) -> None:
        if prompt < (aligned if row["alpha"] == 0 else candidate):
            row["finish_reason"] = "length"

    return edit


def leak(prompt: int, row: Row) -> None:
    if prompt == 3 and row["alpha"] == 1:
        row["response"] = f"{ANSWER}<|im_end|>"


def echo(prompt: int, row: Row) -> None:
    if prompt < (1 if row["alpha"] == 0 else 5):
        row["response"] = QUESTION


def test_one_more_cut_off_answer_of_150_is_no_finding() -> None:
    found = guard("truncation-rate", cut_off(29, 30), 150)
    assert (found.state, found.fired, found.is_beyond) == ("cannot-tell", False, True)
    assert found.value == pytest.approx(0.2)
    assert found.ci_low is not None and found.ci_low < found.threshold < (found.ci_high or 0)
    assert "30" not in found.reason and "cannot be told, let pass" in found.reason
    # What the model before it does too is a matter of the limit, not of the candidate.
    assert "larger max_tokens" in found.reason
    assert "larger max_tokens" not in guard("truncation-rate", cut_off(1, 30), 150).reason


def test_one_answer_of_25_is_no_finding_and_drops_nobody_from_a_race() -> None:
    found = guard("special-tokens", leak, 25)
    assert (found.value, found.state, found.fired) == (0.04, "cannot-tell", False)
    responses, rewards = table(leak, 25)
    prompts = sorted(set(responses["prompt_id"].to_pylist()))[:25]
    measured = measure_tables(
        responses, rewards, alphas=(0.0, 1.0), prompts=prompts, settings=SETTINGS
    )
    assert measured.stopped == {1.0: ()}
    assert measured.suspected == {1.0: ("special-tokens",)}
    assert measured.certain == {1.0: ()}


def test_five_of_70_against_one_do_not_stop_a_gain() -> None:
    found = guard("prompt-echo", echo, 70)
    assert found.value == pytest.approx(5 / 70)
    assert found.threshold == pytest.approx(1 / 70 + 0.05)
    assert (found.state, found.is_beyond, found.fired) == ("cannot-tell", True, False)
    tables = table(echo, 70, gain=0.62)
    assert choose_alpha(*tables, settings=SETTINGS)["best_alpha"] == 1.0
    strict = SETTINGS.model_copy(update={"guard_doubt": "by-value"})
    assert choose_alpha(*tables, settings=strict)["verdict"] == "keep-aligned"


def test_many_are_a_finding() -> None:
    found = guard("truncation-rate", cut_off(1, 30), 150)
    assert (found.state, found.fired) == ("fired", True)
    assert found.ci_low is not None and found.ci_low > found.threshold
    assert found.is_certain(0.001)
    clear = guard("truncation-rate", cut_off(1, 1), 150)
    assert (clear.state, clear.fired, clear.is_certain(1.0)) == ("clear", False, False)


@pytest.mark.parametrize(
    ("doubt", "beyond", "within"),
    [("pass", False, False), ("by-value", True, False), ("stop", True, True)],
)
def test_what_doubt_does_is_a_setting(doubt: str, beyond: bool, within: bool) -> None:
    # 1 of 25 lies beyond the threshold of 1%, 0 of 25 within it; neither is told from it.
    assert guard("special-tokens", leak, 25, guard_doubt=doubt).fired is beyond
    clean = guard("special-tokens", lambda *_: None, 25, guard_doubt=doubt)
    assert (clean.state, clean.fired) == ("cannot-tell", within)


def test_null_rewards_are_counted_not_estimated() -> None:
    def lose(prompt: int, row: Row) -> None:
        if prompt == 3 and row["alpha"] == 1:
            row["reward"] = None

    found = guard("null-rewards", lose, 25)
    assert (found.fired, found.state, found.ci_low) == (True, "fired", None)
    assert not found.is_certain(0.01)  # of 150 prompts it may be the only one
    none = guard("null-rewards", lambda *_: None, 25)
    assert (none.fired, none.state) == (False, "clear")
    assert none.reason.endswith("on 25 prompts the threshold 1%: fine")


def test_the_record_has_state_and_interval() -> None:
    responses, rewards = table(leak, 25)
    chosen = choose_alpha(responses, rewards, settings=SETTINGS)
    [record] = [
        g for g in chosen["guards"] if g["name"] == "special-tokens" and g["split"] == "tuning"
    ]
    assert record["fired"] is False
    assert record["state"] == "cannot-tell"
    assert record["ci_low"] <= record["value"] <= record["ci_high"]
    assert record["num_prompts"] == 25
