"""Which weights are served: a checkpoint, or a pair that is extrapolated while it loads."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from expo_ray.checkpoints import Checkpoint, weights_digest
from expo_ray.errors import ConfigError
from expo_ray.extrapolation import format_alpha, parse_alpha, round_alpha

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """A checkpoint, or aligned + alpha * (aligned - initial) with nothing written to disk.

    Raises:
        ConfigError: Only one of `initial` and `alpha` is given, or alpha is not finite.
    """

    model: str
    """The checkpoint; with `initial`, the aligned one."""
    initial: str | None = None
    """The checkpoint before alignment; None serves `model` as it is."""
    alpha: float | None = None
    """How far beyond aligned; 0 is aligned itself. None serves `model` as it is."""

    def __post_init__(self) -> None:
        if (self.initial is None) != (self.alpha is None):
            raise ConfigError(
                "a live extrapolation needs both initial and alpha",
                where="--initial, --alpha",
                got=f"initial {self.initial}, alpha {self.alpha}",
            )
        if self.alpha is not None:
            object.__setattr__(self, "alpha", parse_alpha(self.alpha))
        # Replicas run in other working directories.
        for name in ("model", "initial"):
            path = getattr(self, name)
            if path is not None and "://" not in path and Path(path).exists():
                object.__setattr__(self, name, str(Path(path).absolute()))

    @property
    def is_live(self) -> bool:
        """Whether the weights are computed while loading."""
        return self.alpha is not None and round_alpha(self.alpha) != 0

    @property
    def name(self) -> str:
        """The name that clients use: the folder's, with `@alpha=0.3` for a pair."""
        folder = self.model.rstrip("/").rsplit("/", 1)[-1]
        return folder if self.alpha is None else f"{folder}@alpha={format_alpha(self.alpha)}"

    def check(self) -> None:
        """Read the first tensor: a wrong pair or checkpoint shows before any replica starts.

        Raises:
            RequestError: The checkpoint or the pair is wrong.
            ShardError: Non-finite values.
        """
        next(iter(self.iter_weights()), None)

    def iter_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, tensor) of all weights."""
        # Imported here: whoever only names a source does not wait for torch.
        from expo_ray.checkpoints import iter_tensors
        from expo_ray.extrapolation import stream_weights

        if self.initial is None or self.alpha is None or not self.is_live:
            yield from iter_tensors(Checkpoint.open(self.model))
        else:
            yield from stream_weights(self.initial, self.model, self.alpha)

    def known_digest(self, *, read_weights: bool = False) -> str | None:
        """Return the weights digest as far as it is known before loading.

        Args:
            read_weights: Compute it from a checkpoint that does not record it (reads all of it).
        """
        if self.is_live:
            return None
        record = Path(self.model) / "expo_ray.json"
        if record.is_file():
            digest = json.loads(record.read_text("utf-8")).get("weights_digest")
            return digest if isinstance(digest, str) else None
        return weights_digest(Checkpoint.open(self.model)) if read_weights else None
