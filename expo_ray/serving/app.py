"""The application builder that a Serve config file names: `expo_ray.serving.app:build_app`."""

from typing import Any

# No `from __future__ import annotations` here: Serve reads the type of `args` itself.
from pydantic import Field
from ray import serve

from expo_ray.credentials import read_api_key
from expo_ray.serving.commands import model_source
from expo_ray.serving.engines.options import EngineOptions
from expo_ray.serving.engines.registry import engine_help
from expo_ray.serving.front_door import ANY_ADDRESS
from expo_ray.serving.served_model import ServedModel


class AppArguments(EngineOptions):
    """The `args` of the application in a Serve config file."""

    model: str = Field(description="A checkpoint; with `initial`, the aligned one.")
    initial: str | None = Field(None, description="theta0 of a live extrapolation.")
    alpha: float | None = Field(
        None,
        description="How far beyond `model`, in units of delta; beside rules, for tensors without "
        "a rule.",
    )
    alpha_rules: str | dict[str, Any] | list[Any] | None = Field(
        None,
        description="Alpha by part of the model: a YAML file, or the table that it would hold.",
    )
    extra_tensors: list[str] = Field(
        default_factory=list,
        description="`copy:PATTERN`: tensors that one side may lack, as for `extrapolate`.",
    )
    num_replicas: int = Field(1, description="Replicas of the model.")
    engine: str = Field("auto", description=engine_help())
    allow_alpha_change: bool = Field(
        False, description="Whether clients may change alpha of the running service."
    )
    max_replicas: int | None = Field(
        None,
        description="Let the autoscaler add replicas up to so many; null keeps `num_replicas`.",
    )
    allowed_hosts: list[str] = Field(
        default_factory=list,
        description="Names besides addresses and localhost by which clients may call a service "
        "without a key.",
    )
    api_key_env: str | None = Field(
        None, description="Environment variable that holds the key clients must send."
    )


def build_app(args: AppArguments) -> serve.Application:
    """Return the OpenAI-compatible application of one model.

    Raises:
        ConfigError: The engine or the API key is not usable.
        CheckpointError: A checkpoint is missing or malformed.
    """
    return ServedModel(
        model_source(args.model, args.initial, args.alpha, args.alpha_rules, args.extra_tensors),
        num_replicas=args.num_replicas,
        engine=args.engine,
        options=args.options,
        allow_alpha_change=args.allow_alpha_change,
        max_replicas=args.max_replicas,
        # Where Serve listens is for the file that names this application to say.
        host=ANY_ADDRESS[0],
        allowed_hosts=args.allowed_hosts,
        api_key=read_api_key(args.api_key_env),
    ).bind()
