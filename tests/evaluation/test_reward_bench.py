import json
from pathlib import Path

import pytest

from expo_ray.errors import EvaluationError
from expo_ray.evaluation import reward_bench_accuracy, reward_self_tests
from expo_ray.evaluation.reward_bench import SECTIONS, Ranking, rank, summarize, wilson
from expo_ray.rewards import RewardScore, load_reward_model
from expo_ray.tables import Message
from expo_ray.tables.preferences import Preference, read_preferences


def ranking(subset: str, *margins: float | None) -> list[Ranking]:
    return [Ranking(subset=subset, margin=margin) for margin in margins]


def group(chosen: tuple[str, ...], rejected: tuple[str, ...]) -> Preference:
    prompt = (Message(role="user", content="q"),)
    return Preference(pair_id="1", subset="all", prompt=prompt, chosen=chosen, rejected=rejected)


def test_intervals_are_those_of_wilson() -> None:
    # Brown, Cai, DasGupta (2001) and statsmodels give these.
    assert wilson(8, 10) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611252), abs=1e-6)
    assert wilson(20, 20)[1] == 1.0
    assert wilson(0, 0) == (None, None)


def test_sections_have_the_published_weights() -> None:
    # 447 pairs of math-prm weigh as much as the six languages of code.
    rankings = ranking("math-prm", *[1.0] * 447)
    for subset in SECTIONS["Reasoning"]:
        if subset != "math-prm":
            rankings += ranking(subset, *[-1.0] * 164)
    [reasoning] = summarize(rankings, where="file")["sections"]
    assert reasoning["accuracy"] == pytest.approx(0.5)
    assert reasoning["num_subsets_missing"] == 0
    assert 0.49 < reasoning["ci_low"] < 0.5 < reasoning["ci_high"] < 0.51
    overall = summarize(rankings, where="file")["overall"]
    assert overall["accuracy"] == pytest.approx(447 / (447 + 6 * 164))

    for section in SECTIONS.values():
        for subset in section:
            rankings += ranking(subset, 1.0)
    result = summarize(rankings, where="file")
    by_name = {section["name"]: section["accuracy"] for section in result["sections"]}
    assert result["overall"]["name"] == "mean of the sections"
    assert result["overall"]["accuracy"] == pytest.approx(sum(by_name.values()) / 4)
    assert by_name["Chat"] == 1.0


def test_equal_scores_are_wrong_and_errors_are_left_out() -> None:
    result = summarize(ranking("a", 0.5, 0.0, -1.0, None) + ranking("b", None), where="file")
    first, second = result["subsets"]
    assert (first["accuracy"], first["num_equal"], first["num_errors"]) == (1 / 3, 1, 1)
    assert (second["accuracy"], second["num_pairs"]) == (None, 0)
    assert (result["num_pairs"], result["num_errors"]) == (3, 2)
    with pytest.raises(EvaluationError, match="none of the pairs"):
        summarize(ranking("a", None), where="file")


def test_a_group_is_right_where_every_chosen_is_above_every_rejected() -> None:
    groups = [
        group(("aaaa", "aaaaa"), ("a", "aa")),
        group(("aaaa", "a"), ("aa",)),
        group(("fail",), ("a",)),
    ]

    def by_length(chats: object, references: object) -> list[RewardScore]:
        assert references is None
        texts = [chat[-1]["content"] for chat in chats]
        return [
            RewardScore.failed("no") if text == "fail" else RewardScore(reward=len(text), tokens=1)
            for text in texts
        ]

    assert [r.margin for r in rank(groups, by_length)] == [2, -1, None]

    def pairwise(chats: object, references: object) -> list[RewardScore]:
        return [
            RewardScore(reward=len(chat[-1]["content"]) - len(other), tokens=1)
            for chat, other in zip(chats, references, strict=True)
        ]

    assert [r.margin for r in rank(groups, pairwise, needs_reference=True)] == [2, -1, 3]


def test_accuracy_through_replicas_equals_plain_scores(
    ray_cluster: str, pico_reward_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "p.jsonl"
    rows = [
        {"prompt": f"Why {i}?", "chosen": f"because {i * 7}", "rejected": "no" * (i % 5 + 1),
         "subset": "odd" if i % 2 else "even"}
        for i in range(20)
    ]  # fmt: skip
    rows.append({"prompt": "x" * 300, "chosen": "a", "rejected": "b", "subset": "odd"})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = reward_bench_accuracy(path, reward_model=str(pico_reward_model), address=ray_cluster)
    model = load_reward_model(str(pico_reward_model))
    expected = summarize(rank(read_preferences(path), model.score), where=path)
    assert {key: result[key] for key in expected} == expected
    assert result["num_errors"] == 1
    assert 0 < result["overall"]["accuracy"] < 1
    assert result["spread"] < 1e-4


def test_the_self_test_of_each_dtype(pico_reward_model: Path) -> None:
    result = reward_self_tests(str(pico_reward_model), dtypes=("float32", "bfloat16"))
    plain, coarse = result["tests"]
    assert (plain["dtype"], coarse["dtype"]) == ("float32", "bfloat16")
    assert plain["spread"] < 1e-4
    assert ("float32" in plain["settings"], "bfloat16" in coarse["settings"]) == (True, True)
    assert coarse["num_chats"] == plain["num_chats"] > 0
