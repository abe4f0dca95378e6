"""The self-test of a reward model: run before hours are spent on scores that would be noise.

It scores the same chats alone and together (batching, padding) and asks for the order of pairs
whose better side is beyond dispute: all of those that are given for the task must rank right; of
the built-in ones, general knowledge in English, it counts how many do. A sound model in float32
moves by less than 1e-4; in bfloat16 batching alone can move a score by more than an extrapolation
does: no such gain is called a gain.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from expo_ray.errors import ConfigError, EvaluationError, argument
from expo_ray.rewards.anchors import AnchorPair, default_anchors
from expo_ray.rewards.checks.reward_model import CheckRewardModel
from expo_ray.rewards.interface import Chat, References, RewardModel, RewardScore
from expo_ray.tables.prompts import Message

MAX_FLOAT32_SPREAD = 1e-3
"""Ten times what a sound model reaches: above it, padding or positions are wrong."""
_MAX_CHATS = 8


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfTest:
    """What the self-test found."""

    reward_model: str
    revision: str
    settings: str
    num_chats: int
    """Chats scored alone and together; 0 for a judge, which makes no batches."""
    batch_spread: float
    """Largest change of a reward between scored alone and in the batches that a job makes."""
    padding_spread: float
    """Largest change between alone and in one batch of all, short rows mostly padding."""
    num_anchors: int
    num_anchors_right: int
    warnings: tuple[str, ...]

    @property
    def spread(self) -> float:
        """How far batching alone moves a score."""
        return max(self.batch_spread, self.padding_spread)

    def as_dict(self) -> dict[str, Any]:
        """Return the content of a side file."""
        return {**asdict(self), "spread": self.spread}


def run_self_test(
    model: RewardModel,
    chats: Sequence[Chat] = (),
    *,
    anchors: Sequence[AnchorPair] | None = None,
    is_general: bool = True,
    references: References | None = None,
) -> SelfTest:
    """Test a reward model on its own and the given chats.

    Args:
        model: The reward model, not one that remembers scores.
        chats: Chats like those to be scored; a few of them are used.
        anchors: Pairs that must rank right, all of them. None takes the built-in ones, of which a
            sound reward model of a narrow task may fail half: it warns only where none ranks right.
        is_general: Whether the built-in anchors are a question to this model at all: to an implicit
            reward, which knows only what alignment changed, they are none.
        references: What a check finds right answers to the chats by.

    Raises:
        EvaluationError: Batching moves scores in float32, nothing can be scored, or a given anchor
            ranks wrong; a check misjudges what it must know.
        ConfigError: Anchors are given for a check that has answers of its own to try.
    """
    if isinstance(model, CheckRewardModel):
        return _test_check(model, chats, references, anchors)
    pairs = default_anchors() if anchors is None else anchors
    spreads = _spreads(model, chats, pairs)
    if anchors is None and not is_general:
        pairs = []
    right = _num_right(model, pairs)[0] if pairs else 0
    if anchors is not None:
        hint = "is it trained for this task, is its chat template right?"
        _require_right(model, right, len(anchors), hint)
    warnings = []
    if pairs and right == 0:
        warnings.append(
            f"{model.name} prefers the wrong answer to all {len(pairs)} questions of general "
            "knowledge: is a higher score of it better, and is its chat template right? Pairs of "
            "your own task tell (--anchors FILE)"
        )
    return SelfTest(
        reward_model=model.name,
        revision=model.revision,
        settings=model.settings,
        **spreads,
        num_anchors=len(pairs),
        num_anchors_right=right,
        warnings=tuple(warnings),
    )


def _test_check(
    model: CheckRewardModel,
    chats: Sequence[Chat],
    references: References | None,
    anchors: Sequence[AnchorPair] | None,
) -> SelfTest:
    """Try a check on right and wrong answers of its kind, then on some that it is there for.

    Only its user knows what is right by a pattern, a schema, a function or a service: anchors say.
    """
    num_trials, wrong = model.trials()
    if num_trials and anchors is not None:
        raise ConfigError(
            "these anchors are not needed: the check has answers of its own to try",
            where=argument("anchors"),
            got=model.name,
            hint="leave them out",
        )
    if wrong:
        raise EvaluationError(
            "the check misjudges answers that it must know",
            where=model.name,
            got="; ".join(wrong),
            expected=f"all {num_trials} judged right",
        )
    if anchors is not None:
        hint = "the check must give the better answer of every pair more than the worse"
        num_right, fault = _num_right(model, anchors)
        _require_right(model, num_right, len(anchors), hint, fault)
        num_trials = len(anchors)
    some = chats[:_MAX_CHATS]
    scores = model.score(some, None if references is None else references[:_MAX_CHATS])
    if scores and all(score.reward is None for score in scores):
        raise EvaluationError(
            "the check is broken on every answer of its self-test",
            where=model.name,
            got=scores[0].error,
            hint="mend the check, or what the prompts say it checks against",
        )
    return SelfTest(
        reward_model=model.name,
        revision=model.revision,
        settings=model.settings,
        num_chats=0,
        batch_spread=0.0,
        padding_spread=0.0,
        num_anchors=num_trials,
        num_anchors_right=num_trials,
        warnings=() if num_trials or chats else (_untried(model),),
    )


def _untried(model: CheckRewardModel) -> str:
    fault = model.fault([[Message(role="user", content="?")]])
    says = "it could say of an answer whether it is right" if fault is None else fault
    return (
        f"{model.name} is yours: no right and no wrong answer is known to try it on, give both "
        f"(--anchors FILE); without what a prompt says, {says}"
    )


def _require_right(
    model: RewardModel, num_right: int, num_anchors: int, hint: str, fault: str | None = None
) -> None:
    if num_right < num_anchors:
        raise EvaluationError(
            "the reward model ranks anchors wrong",
            where=model.name,
            got=f"{num_right} right" + (f"; {fault}" if fault else ""),
            expected=f"all {num_anchors}",
            hint=hint,
        )


def batch_spread(model: RewardModel, chats: Sequence[Chat]) -> float:
    """Return the largest change of a reward between scoring alone and scoring all together.

    Args:
        model: The reward model.
        chats: Chats of different lengths; those with an error are left out.
    """
    alone = [model.score([chat])[0] for chat in chats]
    with _padding_allowed(model):
        return _largest_change(alone, model.score(chats))[0]


def _spreads(
    model: RewardModel, chats: Sequence[Chat], pairs: Sequence[AnchorPair]
) -> dict[str, Any]:
    """Score chats alone and together; a model that makes no batches has no spread."""
    if not hasattr(model, "max_padding"):
        return {"num_chats": 0, "batch_spread": 0.0, "padding_spread": 0.0}
    tested = [*chats[:: max(1, len(chats) // _MAX_CHATS)][:_MAX_CHATS], *map(_better_chat, pairs)]
    tested = tested[: 2 * _MAX_CHATS]
    references = [pairs[i % len(pairs)].worse for i in range(len(tested))] if pairs else None
    alone = [
        model.score([chat], references and references[i : i + 1])[0]
        for i, chat in enumerate(tested)
    ]
    batches, num_chats = _largest_change(alone, model.score(tested, references))
    if num_chats == 0:
        raise EvaluationError(
            "the reward model scores none of the chats of its self-test",
            where=model.name,
            got=next((score.error for score in alone if score.error), "no chats"),
        )
    with _padding_allowed(model):
        padding, _ = _largest_change(alone, model.score(tested, references))
    _require_sound(model, max(batches, padding))
    return {"num_chats": num_chats, "batch_spread": batches, "padding_spread": padding}


@contextmanager
def _padding_allowed(model: RewardModel) -> Iterator[None]:
    """Let a model that batches put rows of any length together."""
    usual = model.max_padding  # type: ignore[attr-defined] # only models that batch have one
    try:
        model.max_padding = 1.0  # type: ignore[attr-defined]
        yield
    finally:
        model.max_padding = usual  # type: ignore[attr-defined]


def _num_right(model: RewardModel, pairs: Sequence[AnchorPair]) -> tuple[int, str | None]:
    """Return how many pairs rank right, and why the first of those without a score has none."""
    answers = [_better_chat(pair) for pair in pairs]
    if model.needs_reference:
        better = model.score(answers, [pair.worse for pair in pairs])
        right = sum(score.reward is not None and score.reward > 0 for score in better)
        return right, next((score.error for score in better if score.error), None)
    better, worse = model.score(answers), model.score([_chat(pair, pair.worse) for pair in pairs])
    right = sum(
        b.reward is not None and w.reward is not None and b.reward > w.reward
        for b, w in zip(better, worse, strict=True)
    )
    return right, next((score.error for score in (*better, *worse) if score.error), None)


def _require_sound(model: RewardModel, spread: float) -> None:
    if "float32" in model.settings and spread > MAX_FLOAT32_SPREAD:
        raise EvaluationError(
            "batching moves the scores of the reward model, though it computes in float32",
            where=model.name,
            got=f"{spread:.2g}",
            expected=f"at most {MAX_FLOAT32_SPREAD:g}",
            hint="its padding is wrong: compare with a score of one chat alone",
        )


def _largest_change(one: Sequence[RewardScore], other: Sequence[RewardScore]) -> tuple[float, int]:
    changes = [
        abs(a.reward - b.reward)
        for a, b in zip(one, other, strict=True)
        if a.reward is not None and b.reward is not None
    ]
    return max(changes, default=0.0), len(changes)


def _better_chat(pair: AnchorPair) -> Chat:
    return _chat(pair, pair.better)


def _chat(pair: AnchorPair, response: str) -> Chat:
    return [*pair.prompt, Message(role="assistant", content=response)]
