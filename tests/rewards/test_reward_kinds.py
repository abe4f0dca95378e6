"""A new kind of reward model is one record: parsed, pinned, loaded and scored like the others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from expo_ray.errors import ConfigError
from expo_ray.rewards import RewardModelSpec, RewardScore, load_reward_model, pin_reward_model
from expo_ray.rewards.interface import Chat, References
from expo_ray.rewards.kinds.kind import RewardKind, unusable
from expo_ray.rewards.kinds.registry import REWARD_KINDS, kind_of, reward_forms
from expo_ray.serving.reward_replicas import RewardReplicas
from expo_ray.serving.rewarder import Rewarder


class Shortness:
    """Rewards answers by how far they stay below a number of characters."""

    revision = "1"
    settings = ""
    needs_reference = False

    def __init__(self, limit: int) -> None:
        self.name = f"shortness:{limit}"
        self._limit = limit

    def score(
        self, chats: Sequence[Chat], references: References | None = None
    ) -> list[RewardScore]:
        lengths = [len(chat[-1]["content"]) for chat in chats]
        return [RewardScore(reward=float(self._limit - n), tokens=0) for n in lengths]


def _parse(text: str) -> tuple[str, Mapping[str, Any]]:
    limit = text.removeprefix("shortness:")
    if not limit.isdigit():
        raise unusable(text, "shortness:NUMBER")
    return "", {"limit": int(limit)}


def _load(spec: RewardModelSpec) -> Shortness:
    return Shortness(spec.arguments["limit"])


SHORTNESS = RewardKind(
    name="shortness",
    prefix="shortness:",
    form="shortness:N",
    parse=_parse,
    load=_load,
    has_dtypes=False,
)
CHATS = [
    [{"role": "user", "content": "?"}, {"role": "assistant", "content": "x" * n}] for n in (2, 5)
]


@pytest.fixture
def shortness(monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setitem(REWARD_KINDS, SHORTNESS.name, SHORTNESS)
    return "shortness:7"


def test_every_record_is_registered_by_its_name() -> None:
    assert {kind.name: kind for kind in REWARD_KINDS.values()} == REWARD_KINDS
    assert reward_forms() == "a checkpoint, implicit:beta=0.1, judge:URL#model or check:KIND"
    assert kind_of("shortness:7") is REWARD_KINDS["classifier"]


def test_a_new_kind_is_parsed_pinned_and_loaded(shortness: str) -> None:
    assert reward_forms().endswith("check:KIND or shortness:N")
    spec = RewardModelSpec.parse(shortness)
    assert (spec.kind, spec.short_name) == (SHORTNESS, "shortness")
    assert pin_reward_model(spec, initial=None, aligned=None) == (spec, None, None)
    scores = load_reward_model(spec).score(CHATS)  # type: ignore[arg-type]
    assert [score.reward for score in scores] == [5.0, 2.0]
    for wrong in ("shortness:", "shortness:x"):
        with pytest.raises(ConfigError, match="unknown kind of reward model") as caught:
            RewardModelSpec.parse(wrong)
        assert caught.value.expected == "shortness:NUMBER"


def test_a_new_kind_scores_in_replicas(ray_cluster: str, shortness: str) -> None:
    with RewardReplicas(shortness, self_test=False, use_cache=False) as replicas:
        scores = replicas.score(CHATS)  # type: ignore[arg-type]
    assert [score.reward for score in scores] == [5.0, 2.0]


def test_a_replica_that_does_not_know_the_kind_by_name_has_its_record() -> None:
    """The spec carries it: nothing has to be registered where a model is loaded."""
    spec = RewardModelSpec(text="shortness:3", kind=SHORTNESS, model="", arguments={"limit": 3})
    scored = asyncio.run(Rewarder(spec).score(CHATS))  # type: ignore[arg-type]
    assert (scored.name, [s.reward for s in scored.scores]) == ("shortness:3", [1.0, -2.0])
