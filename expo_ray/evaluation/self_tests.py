"""The self-test of a reward model in several dtypes, in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

DTYPES = ("float32", "bfloat16", "float16")


def reward_self_tests(
    reward_model: str,
    *,
    initial: str | None = None,
    aligned: str | None = None,
    anchors: str | None = None,
    dtypes: Sequence[str] = DTYPES,
) -> dict[str, Any]:
    """Test a reward model once per dtype; a judge, which has none, once.

    Args:
        reward_model: A checkpoint, `implicit:beta=0.1`, `judge:URL#model` or `check:KIND`.
        initial: For an implicit reward: the checkpoint before alignment.
        aligned: For an implicit reward: the aligned one.
        anchors: A preference file whose pairs must rank right; None takes general ones, which warn,
            and of a check those of its kind, where there are such.
        dtypes: Any of `float32`, `bfloat16`, `float16`.

    Returns:
        `{"reward_model", "tests": [{"dtype", "spread", ...}]}`.

    Raises:
        RequestError: A dtype, a checkpoint or the anchors are wrong.
        EvaluationError: The reward model is unusable.

    Example:
        >>> tested = expo_ray.reward_self_tests("rm", dtypes=["float32", "bfloat16"])
        >>> for test in tested["tests"]:
        ...     print(test["dtype"], test["spread"] < 0.1)
        float32 True
        bfloat16 True
    """
    import torch

    from expo_ray.rewards import RewardModelSpec, load_reward_model, run_self_test
    from expo_ray.rewards.anchors import read_anchors

    spec = RewardModelSpec.parse(reward_model)
    pairs = None if anchors is None else read_anchors(anchors)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tests = []
    for dtype in dtypes if spec.kind.has_dtypes else [None]:
        model = load_reward_model(
            spec, initial=initial, aligned=aligned, device=device, dtype=dtype
        )
        tests.append({"dtype": dtype, **run_self_test(model, anchors=pairs).as_dict()})
    return {"schema_version": 1, "reward_model": reward_model, "device": device, "tests": tests}
