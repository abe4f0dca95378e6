"""Engines that live in the process of their replica, which batches requests for them."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any

from expo_ray.serving.engines.kind import EngineKind

if TYPE_CHECKING:
    from ray import serve

    from expo_ray.serving.engines.interface import Engine
    from expo_ray.serving.engines.options import EngineOptions
    from expo_ray.serving.front_door import ServiceSettings
    from expo_ray.serving.source import ModelSource


class EmbeddedEngine(EngineKind):
    """An engine that only has to load weights and to turn token ids into text."""

    @abstractmethod
    def make(self, options: EngineOptions) -> Engine:
        """Return a new engine, which has no weights yet; called in the replica."""

    def max_batch_rows(self, options: EngineOptions) -> int:
        """Return how many requests a replica gathers into a batch."""
        from expo_ray.serving.generator import MAX_BATCH_ROWS

        return MAX_BATCH_ROWS

    def deployment(self, num_replicas: int, options: EngineOptions) -> dict[str, Any]:
        """Return options of a Serve deployment, see `EngineKind`: one CPU or GPU per replica."""
        from expo_ray.serving.launching import replica_options

        return replica_options(num_replicas)

    def bulk_app(
        self, source: ModelSource, options: EngineOptions, *, deployment: dict[str, Any]
    ) -> serve.Application:
        """Return the application that answers rows of a driver, see `EngineKind`."""
        from ray import serve

        from expo_ray.serving.generator import Generator
        from expo_ray.serving.launching import replica_threads

        replica = serve.deployment(Generator).options(**deployment)
        make_engine = partial(self.make, options)
        return replica.bind(make_engine, num_threads=replica_threads(deployment))

    def server_app(
        self,
        source: ModelSource,
        options: EngineOptions,
        *,
        settings: ServiceSettings,
        rewarder: Any,
        deployment: dict[str, Any],
    ) -> serve.Application:
        """Return the application that answers HTTP requests, see `EngineKind`."""
        from expo_ray.serving.openai_app import OpenAIServer

        server: Any = OpenAIServer
        app: serve.Application = server.options(**deployment).bind(
            partial(self.make, options),
            source,
            settings,
            rewarder,  # one thread: other services and who loads them want the cores, too
        )
        return app
