"""The application builder that a Serve config file names: `expo_ray.serving.app:build_app`."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from ray import serve

from expo_ray.serving.commands import read_api_key
from expo_ray.serving.served_model import ServedModel
from expo_ray.serving.source import ModelSource


class AppArguments(BaseModel):
    """The `args` of the application in a Serve config file."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    model: str
    """A checkpoint; with `initial`, the aligned one."""

    initial: str | None = None
    """theta0 of a live extrapolation."""

    alpha: float | None = None
    """How far beyond `model`, in units of delta."""

    num_replicas: int = 1
    """Replicas of the model."""

    engine: str = "auto"
    """auto or transformers."""

    api_key_env: str | None = None
    """Environment variable that holds the key clients must send."""


def build_app(args: AppArguments) -> serve.Application:
    """Return the OpenAI-compatible application of one model.

    Raises:
        ConfigError: The engine or the API key is not usable.
        CheckpointError: A checkpoint is missing or malformed.
    """
    source = ModelSource(model=args.model, initial=args.initial, alpha=args.alpha)
    return ServedModel(
        source,
        num_replicas=args.num_replicas,
        engine=args.engine,
        api_key=read_api_key(args.api_key_env),
    ).bind()
