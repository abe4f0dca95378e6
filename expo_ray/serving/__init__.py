"""Ray Serve applications: generators with the OpenAI API, reward models, tables made by them."""

from typing import TYPE_CHECKING

from expo_ray.lazy import lazy_exports

if TYPE_CHECKING:
    from expo_ray.serving.alpha_client import get_alpha, set_alpha
    from expo_ray.serving.commands import generate, score, serve
    from expo_ray.serving.engines.options import EngineOptions, parse_engine_args
    from expo_ray.serving.generator_replicas import GeneratorReplicas
    from expo_ray.serving.reward_replicas import RewardReplicas
    from expo_ray.serving.sampling import PAPER_SAMPLING, SamplingParams
    from expo_ray.serving.served_model import ServedModel
    from expo_ray.serving.source import ModelSource

__all__ = [
    "PAPER_SAMPLING",
    "EngineOptions",
    "GeneratorReplicas",
    "ModelSource",
    "RewardReplicas",
    "SamplingParams",
    "ServedModel",
    "generate",
    "get_alpha",
    "parse_engine_args",
    "score",
    "serve",
    "set_alpha",
]

__getattr__ = lazy_exports(
    __name__,
    {
        "PAPER_SAMPLING": "sampling",
        "SamplingParams": "sampling",
        "GeneratorReplicas": "generator_replicas",
        "RewardReplicas": "reward_replicas",
        "ServedModel": "served_model",
        "ModelSource": "source",
        "EngineOptions": "engines.options",
        "parse_engine_args": "engines.options",
        "get_alpha": "alpha_client",
        "set_alpha": "alpha_client",
        "generate": "commands",
        "score": "commands",
        "serve": "commands",
    },
)
