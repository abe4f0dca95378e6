"""What an engine is to the rest of the house: its name, what it needs, how its replicas are built.

Light, and so is every record: whoever lists the engines loads none of them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from expo_ray.errors import argument
from expo_ray.extras import require_extra

if TYPE_CHECKING:
    from ray import serve

    from expo_ray.rewards import RewardModel, RewardModelSpec
    from expo_ray.serving.engines.options import EngineOptions
    from expo_ray.serving.front_door import ServiceSettings
    from expo_ray.serving.source import ModelSource

FLOAT32 = "float32"


class EngineKind(ABC):
    """One engine. `registry.ENGINES` holds one record of each."""

    name: ClassVar[str]
    """What `--engine` and recipes call it, and what tables record."""
    auto_when: ClassVar[str] = ""
    """When `auto` takes it, for `--help`: "where ..."; "" where nothing is to be told."""
    extra: ClassVar[str | None] = None
    """The optional dependency without which it cannot run, see `expo_ray.extras`."""
    reward_models: ClassVar[str] = ""
    """Which reward models it computes, for `--help`; "" where it computes none."""
    takes_engine_args: ClassVar[bool] = False
    """Whether it has arguments of its own, and can share a layer among devices."""

    def require(self) -> None:
        """Check that the engine is installed.

        Raises:
            MissingExtraError: It is not.
        """
        if self.extra is not None:
            require_extra(self.extra, where=argument("engine", self.name))

    def suits(self) -> tuple[bool, str]:
        """Return whether `auto` takes this engine here, and why or why not; never by default."""
        return False, ""

    def check(self, source: ModelSource) -> None:  # noqa: B027 - most have nothing to check
        """Check what the engine would find out only in its replicas, after minutes.

        Raises:
            ConfigError: It cannot do this model on the hardware that is there.
            CheckpointError: The checkpoint is missing or malformed.
        """

    def check_reward_model(self, spec: RewardModelSpec) -> None:  # noqa: B027 - most take all
        """Check that it computes a reward model, by its headers and its config alone.

        Args:
            spec: Pinned.

        Raises:
            ConfigError: It does not, or would give other scores.
        """

    def load_reward_model(
        self,
        spec: RewardModelSpec,
        *,
        initial: str | None,
        aligned: str | None,
        device: str,
        truncate: bool,
    ) -> RewardModel:
        """Return a reward model that is ready to score; called in the replica's own thread.

        Args:
            spec: Pinned, and checked.
            initial: Of an implicit reward: the checkpoint before alignment.
            aligned: Of an implicit reward: the aligned one.
            device: "cpu" or "cuda".
            truncate: Leave out the beginning of chats that are too long.

        Raises:
            RequestError: It cannot be loaded.
        """
        raise AssertionError(f"nobody asks {self.name}, which computes no {spec.text}")

    def precision(self, source: ModelSource, options: EngineOptions) -> tuple[str, str]:
        """Return the dtype in which a CPU computes, and why, as the end of a sentence or "".

        Args:
            source: Which weights.
            options: Settings of the engine.
        """
        return FLOAT32, ""

    def loads_in_place(self, one: ModelSource, other: ModelSource) -> bool:
        """Say whether replicas that were started for one source can load the other."""
        return True

    @abstractmethod
    def max_batch_rows(self, options: EngineOptions) -> int:
        """Return how many requests a replica answers at the same time."""

    @abstractmethod
    def deployment(self, num_replicas: int, options: EngineOptions) -> dict[str, Any]:
        """Return options of a Serve deployment: replicas and their resources.

        Raises:
            ConfigError: The cluster can never hold so many.
        """

    @abstractmethod
    def bulk_app(
        self, source: ModelSource, options: EngineOptions, *, deployment: dict[str, Any]
    ) -> serve.Application:
        """Return the application that answers rows of a driver: `load`, `answer`, `describe`.

        Args:
            source: The weights that come first.
            options: Settings of the engine.
            deployment: Options of the deployment.

        Raises:
            ConfigError: The engine refuses its settings.
        """

    @abstractmethod
    def server_app(
        self,
        source: ModelSource,
        options: EngineOptions,
        *,
        settings: ServiceSettings,
        rewarder: Any,
        deployment: dict[str, Any],
    ) -> serve.Application:
        """Return the application that answers HTTP requests as an `OpenAIService`.

        Args:
            source: Weights to serve.
            options: Settings of the engine.
            settings: Settings of the service.
            rewarder: A bound reward deployment, or None.
            deployment: Options of the deployment.

        Raises:
            ConfigError: The engine refuses its settings.
        """
