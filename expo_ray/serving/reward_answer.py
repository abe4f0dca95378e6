"""What /v1/rewards answers: the score of one chat, by itself or against a reference."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from expo_ray.serving.api_error import ApiError
from expo_ray.serving.openai_requests import RewardsBody
from expo_ray.serving.rewarder import Scored


async def reward_answer(rewarder: Any, body: RewardsBody) -> dict[str, Any]:
    """Score a chat.

    Args:
        rewarder: Handle of a reward deployment.
        body: The request; a pairwise model needs its reference, and no other model takes one.

    Raises:
        ApiError: There is a reference too few or too many, or no reward model could be loaded.
    """
    chat = [{"role": m.role, "content": m.content} for m in body.messages]
    scored: Scored = await rewarder.score.remote([chat], [body.reference])
    if scored.error is not None:
        raise ApiError(503, scored.error.message, code="not_ready")
    name = PurePosixPath(scored.name).name if scored.name.startswith("/") else scored.name
    if body.model not in (None, name, scored.name):
        raise ApiError(
            404,
            f"the reward model {body.model!r} does not exist, {name!r} is served here",
            code="model_not_found",
            param="model",
        )
    _require_reference(body.reference, scored)
    [score] = scored.scores
    return {
        "object": "reward",
        "model": name,
        "model_revision": scored.revision,
        "reward": score.reward,
        "truncated": score.truncated,
        "error": score.error,
        "usage": {"prompt_tokens": score.tokens, "total_tokens": score.tokens},
    }


def _require_reference(reference: str | None, scored: Scored) -> None:
    if scored.needs_reference and reference is None:
        raise ApiError(
            400,
            f"the reward model {scored.name!r} compares a response with another text: the other "
            "response to the same prompt or, for a check, the right answer; give it as `reference`",
            code="missing_reference",
            param="reference",
        )
    if reference is not None and not scored.needs_reference:
        raise ApiError(
            400,
            f"the reward model {scored.name!r} scores a response by itself; leave out `reference`",
            code="invalid_value",
            param="reference",
        )
