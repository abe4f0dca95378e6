"""RewardBench 2's Ties, against its description written out question by question."""

from __future__ import annotations

import math

import numpy as np
import pytest

from expo_ray.errors import TableError
from expo_ray.evaluation.reward_bench import REWARD_BENCH_2, Ranking, summarize
from expo_ray.evaluation.ties import TieGroup, score_ties


def questions(num_questions: int, seed: int) -> dict[int, dict[str, list[list[float]]]]:
    """Scores of right and wrong answers, per question and kind."""
    random = np.random.default_rng(seed)
    return {
        i: {
            "ref": [list(random.normal(1, 1, 1)), list(random.normal(0, 1, 4))],
            "tied": [list(random.normal(1.5, 0.5, 5)), list(random.normal(0, 1, 6))],
        }
        for i in range(num_questions)
    }


def groups(scores: dict[int, dict[str, list[list[float]]]]) -> list[TieGroup]:
    return [
        TieGroup(
            f"{kind}:{i}",
            min(right) - max(wrong),
            max(right) - min(right) if len(right) > 1 else None,
        )
        for i, kinds in scores.items()
        for kind, (right, wrong) in kinds.items()
    ]


def by_hand(scores: dict[int, dict[str, list[list[float]]]]) -> float:
    right_of = {
        kind: [all(r > w for r in s[kind][0] for w in s[kind][1]) for s in scores.values()]
        for kind in ("ref", "tied")
    }
    preferred, hard, margins = [], [], []
    for kinds in scores.values():
        lead = {kind: min(right) - max(wrong) for kind, (right, wrong) in kinds.items()}
        spread = max(kinds["tied"][0]) - min(kinds["tied"][0])
        preferred.append(lead["tied"] > spread)
        hard.append(min(lead.values()) > spread)
        margins.append(math.tanh(min(lead.values()) / spread - 1))
    means = [sum(part) / len(part) for part in (*right_of.values(), preferred, hard, margins)]
    return float(np.dot(means, [0.3, 0.3, 0.2, 0.2, 0.01]))


def test_the_score_is_that_of_the_description() -> None:
    scores = questions(51, seed=0)
    found = score_ties(groups(scores), where="file")
    assert found["score"] == pytest.approx(by_hand(scores))
    assert found["ci_low"] < found["score"] < found["ci_high"]
    assert found["num_questions"] == 51
    assert score_ties(groups(scores), where="file") == found


def test_equal_right_answers_that_lead_are_as_good_as_can_be() -> None:
    found = score_ties([TieGroup("ref:1", 1.0, None), TieGroup("tied:1", 2.0, 0.0)], where="file")
    assert found["score"] == pytest.approx(1.01)
    none = score_ties([TieGroup("ref:1", 0.0, None), TieGroup("tied:1", 0.0, 0.0)], where="file")
    assert none["score"] == 0.0


def test_what_could_not_be_scored_is_left_out() -> None:
    scores = questions(20, seed=1)
    broken = [TieGroup("ref:90", None, None), TieGroup("tied:90", None, None)]
    found = score_ties([*groups(scores), *broken], where="file")
    assert found["score"] == pytest.approx(by_hand(scores))
    assert found["num_questions"] == 20
    pairwise = [group._replace(spread=None) for group in groups(scores)]
    assert score_ties(pairwise, where="file")["score"] is None


@pytest.mark.parametrize("pair_id", ["7", "tie:1", "ref:1"])
def test_a_row_that_is_of_no_question_is_refused(pair_id: str) -> None:
    first = TieGroup("ref:1", 1.0, None)
    with pytest.raises(TableError, match="which question") as caught:
        score_ties([first, TieGroup(pair_id, 1.0, None)], where="file")
    assert pair_id in str(caught.value)


def test_the_six_subsets_count_alike() -> None:
    rankings = [
        Ranking(subset=subset, margin=1.0 if i else -1.0)
        for subset in REWARD_BENCH_2[:-1]
        for i in range(4)
    ]
    rankings += [
        Ranking(subset="Ties", pair_id="ref:1", margin=1.0),
        Ranking(subset="Ties", pair_id="tied:1", margin=2.0, spread=0.5),
    ]
    result = summarize(rankings, where="file")
    expected = 1.0 + 0.01 * math.tanh(1.0)
    assert result["subsets"][-1]["accuracy"] == pytest.approx(expected)
    assert result["overall"]["name"] == "mean of the subsets"
    assert result["overall"]["accuracy"] == pytest.approx((5 * 0.75 + expected) / 6)
