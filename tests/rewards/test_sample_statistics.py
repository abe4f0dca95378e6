"""Several answers to a prompt as one value, against enumeration and by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from expo_ray.errors import ConfigError, EvaluationError
from expo_ray.rewards import RewardModelSpec
from expo_ray.rewards.sample_statistics import (
    named,
    pass_at,
    ranked_by,
    read_samples,
    require_statistic,
    statistics_of,
    summarize_samples,
)


def test_pass_at_k_is_the_mean_over_all_draws_of_k() -> None:
    for n, k in ((1, 1), (4, 1), (4, 2), (5, 5), (7, 3)):
        for right in range(n + 1):
            draws = list(itertools.combinations([1] * right + [0] * (n - right), k))
            expected = np.mean([max(draw) for draw in draws])
            [found] = pass_at(k, np.array([n]), np.array([right]))
            assert found == pytest.approx(expected, abs=1e-12)
    assert math.isnan(pass_at(3, np.array([2]), np.array([2]))[0])
    # The published form, where the binomials are too large for a float.
    expected = 1 - math.comb(900, 100) / math.comb(1000, 100)
    assert pass_at(100, np.array([1000]), np.array([100]))[0] == pytest.approx(expected, abs=1e-12)


REPEATING = ("prompt_id", "weights_digest", "reward_model")
Row = tuple[str, float | None, str]


def tables(rows: Sequence[Row], check: str = "check:number") -> tuple[pa.Table, pa.Table]:
    """Return rewards and responses of rows (prompt, reward, response)."""
    counts: dict[str, int] = {}
    keys: list[dict[str, Any]] = []
    for prompt, _, _ in rows:
        counts[prompt] = counts.get(prompt, 0) + 1
        keys.append({"prompt_id": prompt, "sample": counts[prompt] - 1, "weights_digest": "d"})
    rewards = [
        {**key, "alpha": 0.0, "reward": row[1], "reward_model": check}
        for key, row in zip(keys, rows, strict=True)
    ]
    responses = [{**key, "response": row[2]} for key, row in zip(keys, rows, strict=True)]
    return pa.Table.from_pylist(rewards), pa.Table.from_pylist(responses[::-1])


ROWS: list[Row] = [
    # Most say 4, in two ways of writing it, and are right.
    ("a", 1.0, "It is 4."),
    ("a", 0.0, "5"),
    ("a", 1.0, r"\boxed{4.0}"),
    ("a", 0.0, "no idea"),
    # Most are wrong.
    ("b", 0.0, "7"),
    ("b", 0.0, "7.00"),
    ("b", 1.0, "8"),
    # A tie is shared, and a broken check has no vote.
    ("c", 1.0, "1"),
    ("c", 0.0, "2"),
    ("c", None, "2"),
    # Nobody answers.
    ("d", 0.0, "?"),
]


def test_each_statistic_by_hand() -> None:
    samples = read_samples(*tables(ROWS))
    assert samples.most_samples == 4
    expected = {
        "avg": [0.5, 1 / 3, 0.5, 0.0],
        "pass@1": [0.5, 1 / 3, 0.5, 0.0],
        "pass@2": [1 - 1 / 6, 1 - 1 / 3, 1.0, math.nan],
        "pass@4": [1.0, math.nan, math.nan, math.nan],
        "majority": [1.0, 0.0, 0.5, 0.0],
    }
    for statistic, values in expected.items():
        np.testing.assert_allclose(samples.values(statistic), values)
    assert statistics_of(samples) == ["avg", "pass@2", "pass@4", "majority"]


def test_columns_that_were_read_as_dictionaries_say_the_same() -> None:
    encoded = [
        pa.table({n: t[n].dictionary_encode() if n in REPEATING else t[n] for n in t.column_names})
        for t in tables(ROWS)
    ]
    plain, read = read_samples(*tables(ROWS)), read_samples(*encoded)
    for statistic in ("avg", "pass@2", "majority"):
        np.testing.assert_array_equal(read.values(statistic), plain.values(statistic))


def test_what_can_be_told_depends_on_the_check_and_its_rewards() -> None:
    shares = [("a", 0.5, "x"), ("a", 1.0, "y")]
    samples = read_samples(*tables(shares, "check:constraints=strict-share"))
    assert statistics_of(samples) == ["avg"]
    with pytest.raises(EvaluationError, match="more than right or wrong") as caught:
        samples.values("pass@2")
    assert caught.value.got == "0.5"
    code = read_samples(*tables([("a", 0.0, "x"), ("a", 1.0, "y")], "check:code"))
    assert statistics_of(code) == ["avg", "pass@2"]
    assert statistics_of(read_samples(*tables([("a", 0.0, "x"), ("b", 1.0, "y")]))) == []
    assert (named("pass@2", 8), named("majority", 8)) == ("pass@2", "majority@8")


def test_ranking_gives_every_sample_what_its_prompt_has() -> None:
    rewards, responses = tables(ROWS)
    assert ranked_by("avg", rewards, responses) is rewards
    ranked = ranked_by("majority", rewards, responses)
    assert ranked["reward"].to_pylist() == [1.0] * 4 + [0.0] * 3 + [0.5, 0.5, None, 0.0]
    assert ranked.drop_columns(["reward"]).equals(rewards.drop_columns(["reward"]))
    passed = ranked_by("pass@3", rewards, responses)["reward"].to_pylist()
    assert passed == [1.0] * 4 + [1.0] * 3 + [None] * 4
    unvoted = tables([("a", 0.0, "x"), ("a", 1.0, "y")], "check:code")
    with pytest.raises(EvaluationError, match="answers of this reward model cannot be compared"):
        ranked_by("majority", *unvoted)


def test_intervals_are_over_prompts() -> None:
    rows = [(str(i), float(i % 3 == 0), "1") for i in range(60) for _ in range(4)]
    avg, *_, majority = summarize_samples(*tables(rows))
    assert (avg["statistic"], majority["statistic"]) == ("avg@4", "majority@4")
    assert (avg["mean"], avg["num_prompts"]) == (pytest.approx(1 / 3), 60)
    # Four equal answers are no more than one: a binomial interval of 60, not of 240.
    assert avg["ci_high"] - avg["ci_low"] == pytest.approx(4 * math.sqrt(2 / 9 / 60), rel=0.15)
    [same, *_] = summarize_samples(*tables([("a", 1.0, "1")] * 2 + [("b", 1.0, "1")] * 2))
    assert (same["mean"], same["ci_low"], same["ci_high"]) == (1.0, None, None)


@pytest.mark.parametrize(
    ("statistic", "check", "num_samples", "message"),
    [
        ("pass@4", "check:number", 2, "too few samples"),
        ("majority", "check:number", 1, "too few samples"),
        ("majority", "check:code", 4, "no such statistic"),
        ("pass@2", "./rm", 4, "no such statistic"),
    ],
)
def test_a_statistic_that_cannot_be_had_is_refused_first(
    statistic: str, check: str, num_samples: int, message: str
) -> None:
    spec = RewardModelSpec.parse(check)
    with pytest.raises(ConfigError, match=message):
        require_statistic(statistic, spec, num_samples)
    require_statistic("avg", spec, num_samples)
