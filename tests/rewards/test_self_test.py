from collections.abc import Sequence
from pathlib import Path

import pytest

from expo_ray.errors import EvaluationError
from expo_ray.rewards import RewardScore, load_reward_model, run_self_test
from expo_ray.rewards.anchors import AnchorPair, default_anchors
from expo_ray.rewards.interface import Chat, References
from expo_ray.tables import Message
from tests.rewards.own_heads import save_pairwise
from tests.rewards.test_classifier import CHATS


class Scorer:
    """A reward model of plain arithmetic, wrong in the way that a test asks for."""

    name, revision, settings, needs_reference = "arithmetic", "1", "float32", False
    max_padding = 0.03

    def __init__(self, *, batch_error: float = 0.0, sign: int = 1, num_known: int = 8) -> None:
        self.batch_error, self.sign, self.num_known = batch_error, sign, num_known

    def score(
        self, chats: Sequence[Chat], references: References | None = None
    ) -> list[RewardScore]:
        better = {pair.better for pair in default_anchors()[: self.num_known]}
        answers = [chat[-1]["content"] for chat in chats]
        moved = self.batch_error * (len(chats) - 1)
        return [
            RewardScore(reward=self.sign * (answer in better) + moved, tokens=len(answer))
            for answer in answers
        ]


def test_a_sound_model_passes_in_every_dtype_and_the_spread_grows(pico_reward_model: Path) -> None:
    spreads = {}
    for dtype in ("float32", "bfloat16", "float16"):
        model = load_reward_model(str(pico_reward_model), dtype=dtype)
        result = run_self_test(model, CHATS)
        assert result.num_chats > len(CHATS)
        spreads[dtype] = result.spread
        assert model.max_padding < 1, "the self-test leaves the model as it was"
    assert spreads["float32"] < 1e-4
    assert spreads["bfloat16"] > 10 * spreads["float32"]
    # A random model ranks at random: told, not refused.
    assert result.num_anchors_right < result.num_anchors
    assert result.as_dict()["spread"] == spreads["float16"]


def test_batching_that_moves_float32_scores_stops_the_work() -> None:
    with pytest.raises(EvaluationError, match="batching"):
        run_self_test(Scorer(batch_error=0.001))
    assert run_self_test(Scorer()).warnings == ()


def test_general_knowledge_is_counted_and_only_a_reversed_model_is_warned_of() -> None:
    narrow = run_self_test(Scorer(num_known=4))
    assert (narrow.num_anchors_right, narrow.num_anchors, narrow.warnings) == (4, 8, ())
    [warning] = run_self_test(Scorer(sign=-1)).warnings
    assert "all 8" in warning
    assert "--anchors" in warning
    no_question = run_self_test(Scorer(sign=-1), is_general=False)
    assert (no_question.num_anchors, no_question.warnings) == (0, ())
    assert no_question.num_chats > 0, "batching is tested all the same"


def test_given_anchors_must_all_rank_right() -> None:
    prompt = (Message(role="user", content="q"),)
    known = default_anchors()[0].better
    right = AnchorPair(prompt=prompt, better=known, worse="else")
    wrong = AnchorPair(prompt=prompt, better="else", worse=known)
    assert run_self_test(Scorer(), anchors=[right]).num_anchors_right == 1
    with pytest.raises(EvaluationError, match="1 right"):
        run_self_test(Scorer(), anchors=[right, wrong])


def test_a_pairwise_model_is_tested_too(tmp_path: Path) -> None:
    model = load_reward_model(str(save_pairwise(tmp_path / "rm")[0]))
    result = run_self_test(model, CHATS)
    assert result.spread < 1e-4
    assert 0 <= result.num_anchors_right <= result.num_anchors


def test_a_model_that_scores_nothing_is_found_out(pico_reward_model: Path) -> None:
    too_long = [[Message(role="user", content="x" * 300), Message(role="assistant", content="y")]]
    with pytest.raises(EvaluationError, match="none of the chats"):
        run_self_test(load_reward_model(str(pico_reward_model)), too_long, anchors=[])
