"""The method: alpha, pair validation, plan, one shard's work, reassembly, verification, statistics.

What does not belong here: prompts, responses, rewards; and Ray, but for the fan-out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from expo_ray.lazy import lazy_exports

if TYPE_CHECKING:
    from expo_ray.extrapolation.cluster_doctor import doctor
    from expo_ray.extrapolation.diagnosis import diagnose
    from expo_ray.extrapolation.inspection import inspect_checkpoint
    from expo_ray.extrapolation.job import extrapolate
    from expo_ray.extrapolation.outputs.results import ExtrapolationResult
    from expo_ray.extrapolation.planning.alpha import (
        checkpoint_name,
        format_alpha,
        parse_alpha,
        round_alpha,
    )
    from expo_ray.extrapolation.shards.streaming import stream_weights
    from expo_ray.extrapolation.trajectories.job import extrapolate_trajectory
    from expo_ray.extrapolation.trajectories.judgement import diagnose_trajectory
    from expo_ray.extrapolation.verification import verify

__all__ = [
    "ExtrapolationResult",
    "checkpoint_name",
    "diagnose",
    "diagnose_trajectory",
    "doctor",
    "extrapolate",
    "extrapolate_trajectory",
    "format_alpha",
    "inspect_checkpoint",
    "parse_alpha",
    "round_alpha",
    "stream_weights",
    "verify",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "ExtrapolationResult": "outputs.results",
        "checkpoint_name": "planning.alpha",
        "diagnose": "diagnosis",
        "diagnose_trajectory": "trajectories.judgement",
        "doctor": "cluster_doctor",
        "extrapolate": "job",
        "extrapolate_trajectory": "trajectories.job",
        "format_alpha": "planning.alpha",
        "inspect_checkpoint": "inspection",
        "parse_alpha": "planning.alpha",
        "round_alpha": "planning.alpha",
        "stream_weights": "shards.streaming",
        "verify": "verification",
    },
)
