"""Which weights are served: a checkpoint, or a pair that is extrapolated while it loads.

Weights are hashed as they pass on their way into an engine (`iter_weights`, `fill`), by
`expo_ray.checkpoints.digests.WeightsDigest`: the digest of what is served. `known_digest` is the
one that a checkpoint's record holds. The two are compared where answers are written
(`generator_replicas`) and where a run keeps its choice (`expo_ray.workflow.stages`). A load test
compares each answer's with the one that the service told before (`expo_ray.loadtests.answer`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from expo_ray.checkpoints import Checkpoint, WeightsDigest, open_checkpoint
from expo_ray.checkpoints.digests import ALGORITHM
from expo_ray.checkpoints.formats.header import parse_config
from expo_ray.checkpoints.opening import absolute_address, open_aligned
from expo_ray.checkpoints.read_ahead import read_ahead
from expo_ray.checkpoints.storages.hub_storage import is_hub_address
from expo_ray.checkpoints.storages.storage import RECORD_NAME, split_address
from expo_ray.errors import ConfigError, argument
from expo_ray.extrapolation import round_alpha
from expo_ray.extrapolation.planning.alpha_rules import AlphaRules, resolve
from expo_ray.extrapolation.trajectories.fitted_change import FittedChange
from expo_ray.serving.alpha_setting import AlphaSetting, parse_setting, setting_label

if TYPE_CHECKING:
    import torch

    from expo_ray.extrapolation.arithmetic.directions import Direction
    from expo_ray.extrapolation.planning.plan import Plan
    from expo_ray.extrapolation.shards.streaming import PlaceOf


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelSource:
    """A checkpoint, or aligned + alpha * (aligned - initial) with nothing written to disk.

    Along a trajectory its last checkpoint is aligned, and the fitted change stands for delta.

    Raises:
        ConfigError: Only one of `initial` and alpha (or its rules) is given, or it is malformed.
    """

    model: str
    """The checkpoint; with `initial`, the aligned one."""
    initial: str | None = None
    """The checkpoint before alignment; None serves `model` as it is."""
    alpha: float | None = None
    """How far beyond aligned; 0 is aligned itself. None serves `model` as it is, or is under
    rules, whose default an alpha given beside them becomes."""
    alpha_rules: AlphaRules | None = None
    """Alpha by part of the model. Its YAML file, or the table that it holds, is taken too."""
    extra_tensors: tuple[str, ...] = ()
    """`copy:PATTERN`: tensors that one side of a pair may lack, as for `extrapolate`."""
    along: FittedChange | None = None
    """Of a trajectory, whose first and last checkpoint are then initial and model."""

    def __post_init__(self) -> None:
        setting = parse_setting(self.alpha, self.alpha_rules)
        if (self.initial is None) != (setting is None):
            label = "no alpha" if setting is None else setting_label(setting)
            side = "no initial" if self.initial is None else f"initial {self.initial}"
            raise ConfigError(
                "a live extrapolation needs both initial and alpha (or its rules)",
                where=f"{argument('initial')}, {argument('alpha')}, {argument('alpha_rules')}",
                got=f"{side}, {label}",
            )
        object.__setattr__(self, "extra_tensors", tuple(self.extra_tensors))
        if self.extra_tensors and self.initial is None:
            raise ConfigError(
                "extra tensors are those of a pair",
                where=argument("extra_tensors"),
                got=", ".join(self.extra_tensors),
                expected=f"with {argument('initial')}",
            )
        rules = setting if isinstance(setting, AlphaRules) else None
        object.__setattr__(self, "alpha_rules", rules)
        if isinstance(self.along, Mapping):
            object.__setattr__(self, "along", FittedChange(**self.along))
        object.__setattr__(self, "alpha", setting if rules is None else None)
        # Replicas run in other working directories.
        for name in ("model", "initial"):
            path = getattr(self, name)
            if path is not None:
                object.__setattr__(self, name, absolute_address(path))

    @property
    def is_live(self) -> bool:
        """Whether the weights are computed while loading."""
        if self.alpha_rules is not None:
            return True
        return self.alpha is not None and round_alpha(self.alpha) != 0

    @property
    def setting(self) -> AlphaSetting | None:
        """The alpha, or the rules, of a pair; None for a checkpoint."""
        return self.alpha if self.alpha_rules is None else self.alpha_rules

    def at(self, setting: AlphaSetting) -> ModelSource:
        """Return the same pair at another alpha, or under other rules."""
        if isinstance(setting, AlphaRules):
            return replace(self, alpha=None, alpha_rules=setting)
        return replace(self, alpha=setting, alpha_rules=None)

    def is_same_pair(self, other: ModelSource) -> bool:
        """Whether both are pairs that differ in alpha at most."""
        names = ("model", "initial", "extra_tensors", "along")
        return self.initial is not None and all(
            getattr(self, name) == getattr(other, name) for name in names
        )

    @property
    def source_id(self) -> str:
        """Eight hex digits that name this source: what it is made of, not its weights."""
        return hashlib.sha256(repr(self).encode()).hexdigest()[:8]

    @property
    def stable_name(self) -> str:
        """The name that stays whatever alpha becomes: the folder's."""
        address = split_address(self.model)[0].rstrip("/")
        if is_hub_address(address):
            address = address.partition("@")[0]
        return address.rsplit("/", 1)[-1]

    @property
    def name(self) -> str:
        """The name of these very weights: of a pair with `@alpha=0.3` or `@rules=1a2b3c4d`."""
        setting = self.setting
        return self.stable_name + ("" if setting is None else f"@{setting_label(setting)}")

    def open(self) -> Checkpoint:
        """Read the headers of `model`: its config and tokenizer are those of what is served.

        Raises:
            CheckpointError: It is missing or malformed.
        """
        if self.initial is None:
            return open_checkpoint(self.model)
        return open_aligned(self.model, open_checkpoint(self.initial))

    def pinned(self) -> ModelSource:
        """Return the source by addresses that mean the same on every node, now and later.

        Paths become absolute, revisions on the Hub commits, an adapter names its base.

        Raises:
            CheckpointError: A checkpoint is missing or malformed.
        """
        if self.along is not None:
            along = self.along.pinned()
            return replace(self, model=along.last, initial=along.first, along=along)
        model = self.open().uri
        initial = None if self.initial is None else open_checkpoint(self.initial).uri
        return replace(self, model=model, initial=initial)

    def check(self) -> None:
        """Read the first tensor: a wrong pair or checkpoint shows before any replica starts.

        Of a fit by tensor the headers alone: before the first one it reads all checkpoints.

        Raises:
            RequestError: The checkpoint or the pair is wrong.
            ShardError: Non-finite values.
        """
        if self.along is not None and self.along.needs_gram:
            self.check_pair()
            return
        next(iter(self.iter_weights()), None)

    def check_pair(self) -> None:
        """Check by the headers alone that the pair, and the rules if there are any, fit.

        Raises:
            RequestError: A tensor has no rule, a rule has no tensor, or the pair is wrong.
        """
        from expo_ray.extrapolation.pairing.pair import refuse_same_checkpoint

        if self.initial is not None:
            plan, _ = self._plan(measured=False)
            if self.along is None:
                refuse_same_checkpoint(plan.pair.initial, plan.pair.aligned)
            if self.alpha_rules is not None:
                resolve(self.alpha_rules, plan.pair.tensors)

    def iter_weights(
        self, digest: WeightsDigest | None = None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, tensor) of all weights.

        Args:
            digest: Takes every tensor as it passes.
        """
        # Reading and computing, the digest, and what the caller does go on side by side.
        tensors = read_ahead(self._tensors())
        return tensors if digest is None else read_ahead(_digested(tensors, digest))

    def fill(self, place_of: PlaceOf, digest: WeightsDigest) -> None:
        """Put all weights into tensors that are there already.

        Args:
            place_of: Gives the flat tensor for a name and shape; called from several threads.
            digest: Takes every tensor.

        Raises:
            RequestError: The checkpoint or the pair is wrong.
            ShardError: Non-finite values.
        """
        from expo_ray.extrapolation.shards.streaming import fill_plan

        if not self.is_live:
            for name, tensor in self.iter_weights(digest):
                place_of(name, tensor.shape).copy_(tensor.flatten())
            return
        plan, directions = self._plan(measured=True)
        fill_plan(
            plan,
            self.alpha,
            alpha_rules=self.alpha_rules,
            directions=directions,
            place_of=place_of,
            digest=digest,
        )

    def _plan(self, *, measured: bool) -> tuple[Plan, tuple[Direction, ...]]:
        """Return what is computed, and what takes the place of delta along a trajectory."""
        from expo_ray.extrapolation.planning.plan import build_plan

        if self.along is not None:
            plan = self.along.measured if measured else self.along.plan
            return plan(self.extra_tensors)
        return build_plan(str(self.initial), self.model, extra_tensors=self.extra_tensors), ()

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        from expo_ray.checkpoints import iter_tensors
        from expo_ray.checkpoints.tensors import TORCH_DTYPES
        from expo_ray.extrapolation.shards.streaming import stream_plan

        if self.is_live:
            plan, directions = self._plan(measured=True)
            how: dict[str, Any] = {"alpha_rules": self.alpha_rules, "directions": directions}
            yield from stream_plan(plan, self.alpha, **how)
            return
        checkpoint = self.open()
        for name, tensor in iter_tensors(checkpoint):
            # The sums of an adapter are served in the dtype in which they would be written.
            dtype = checkpoint.auto_dtypes.get(name)
            yield name, tensor if dtype is None else tensor.to(TORCH_DTYPES[dtype])

    def known_digest(self, *, read_weights: bool = False) -> str | None:
        """Return the weights digest as far as it is known before loading.

        Args:
            read_weights: Compute it from a checkpoint that does not record it (reads all of it).
        """
        if self.is_live:
            return None
        if (record := self._record()) is not None:
            digest = str(record.get("weights_digest"))
            # What an older record holds cannot be compared with what a replica loads.
            if digest.startswith(f"{ALGORITHM}:"):
                return digest
        if not read_weights:
            return None
        found = WeightsDigest()
        for _ in self.iter_weights(found):
            pass
        return found.written()

    def known_alpha(self) -> float | None:
        """Return alpha, of a checkpoint the one that its record tells; None where none is known."""
        if self.setting is not None:
            return self.alpha
        alpha = (self._record() or {}).get("alpha")
        return float(alpha) if isinstance(alpha, int | float) else None

    def _record(self) -> dict[str, Any] | None:
        """Return what `extrapolate` wrote beside a checkpoint; None where somebody else made it."""
        checkpoint = self.open()
        # An adapter shows the files of its base, whose record is about other weights.
        is_whole = not split_address(checkpoint.uri)[1]
        if not is_whole or RECORD_NAME not in checkpoint.storage.list_files():
            return None
        where = f"{checkpoint.uri}/{RECORD_NAME}"
        return parse_config(checkpoint.storage.read_bytes(RECORD_NAME), file=where)


def _digested(
    tensors: Iterator[tuple[str, torch.Tensor]], digest: WeightsDigest
) -> Iterator[tuple[str, torch.Tensor]]:
    # Imported here: whoever only names a source does not wait for torch.
    from expo_ray.checkpoints.tensors import DTYPE_NAMES

    for name, tensor in tensors:
        digest.add(name, tensor, DTYPE_NAMES[tensor.dtype], tensor.shape)
        yield name, tensor
