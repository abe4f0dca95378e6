"""A plain plan as the configuration with which mergekit computes the same model.

Task arithmetic with base = initial and weight 1 + alpha on aligned is
`initial + (1 + alpha) * (aligned - initial)`: the formula, rounded in another order, so that the
last bits may differ. Onto another base it is task arithmetic with that base, alpha on aligned and
-alpha on initial. What mergekit cannot say in this method is refused and not approximated.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from expo_ray.checkpoints.formats.header import FLOAT_DTYPES
from expo_ray.checkpoints.storages.atomic_io import atomic_write_text
from expo_ray.checkpoints.storages.storage import split_address
from expo_ray.errors import ConfigError, argument
from expo_ray.extrapolation.planning.plan import Plan

FLAG = argument("export_mergekit")
_NAMES = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
_HEADER = """\
# For mergekit 0.1.5: mergekit-yaml THIS_FILE OUTPUT
# The sum is rounded in another order than by expo-ray, so the last bits may differ. Tokenizer,
# config and generation config come from base_model there, from the aligned model here.
"""


def mergekit_config(plan: Plan, alpha: float) -> dict[str, Any]:
    """Return the configuration of one alpha.

    Raises:
        ConfigError: The plan is not plain: transforms, copied rows, or dtypes of several kinds.
    """
    floats = [pair for pair in plan.pair.tensors if pair.base.dtype in FLOAT_DTYPES]
    dtypes = sorted({pair.output_dtype for pair in floats})
    if plan.transforms:
        raise _refusal("transforms", ", ".join(map(str, plan.transforms)))
    if len(dtypes) > 1 or dtypes[0] not in _NAMES or plan.has_float64:
        hint = f"{argument('output_dtype')} gives one dtype to all, where none is float64"
        raise _refusal("dtypes of several kinds, or float64", ", ".join(dtypes), hint)
    for pair in floats:
        if pair.runs:
            raise _refusal("rows that are copied or moved", f"tensor {pair.name!r}")
    sides = {side: _reference(checkpoint.uri) for side, checkpoint in plan.pair.sides.items()}
    weights = {"aligned": 1 + alpha}
    if plan.pair.onto is not None:
        # The base cancels out of the two differences, which leaves alpha times delta.
        weights = {"aligned": alpha, "initial": -alpha}
    return {
        "merge_method": "task_arithmetic",
        "base_model": sides.get("onto", sides["initial"]),
        "models": [
            {"model": sides[side], "parameters": {"weight": weight}}
            for side, weight in weights.items()
        ],
        "parameters": {"normalize": False},
        "dtype": "float32",
        "out_dtype": _NAMES[dtypes[0]],
    }


@dataclass(frozen=True, kw_only=True, slots=True)
class MergekitFile:
    """A configuration and where it goes: made with the plan, written when all else was accepted."""

    path: Path
    text: str

    @classmethod
    def of(cls, path: str | Path, plan: Plan, alpha: float | None) -> MergekitFile:
        """Return the configuration of a plan as YAML.

        Args:
            path: The file; replaced where it exists.
            plan: The plan.
            alpha: Its only alpha; None under alpha rules, which are refused.

        Raises:
            ConfigError: The plan is not plain, or no file can be written there.
        """
        if alpha is None:
            raise _refusal("alpha rules, or several alphas", "no single alpha")
        config = mergekit_config(plan, alpha)
        text = _HEADER + yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
        found = cls(path=Path(path).expanduser(), text=text)
        if not os.access(found.path.parent, os.W_OK) or found.path.is_dir():
            raise found.refusal("a folder" if found.path.is_dir() else "no folder to write to")
        return found

    def write(self) -> None:
        """Write the file.

        Raises:
            ConfigError: It cannot be written.
        """
        try:
            atomic_write_text(self.path, self.text)
        except OSError as error:
            raise self.refusal(error.strerror or error) from error

    def refusal(self, got: object) -> ConfigError:
        """Return the error for a file that cannot be written."""
        return ConfigError(
            "the mergekit configuration cannot be written",
            where=argument("export_mergekit", self.path),
            got=got,
            expected="a file in a folder that exists and can be written to",
        )


def _reference(uri: str) -> str:
    """Return how mergekit names a model: a folder, or owner/name@revision."""
    if uri.startswith("hf://"):
        return uri.removeprefix("hf://")
    is_computed = split_address(uri) != (uri, "")  # an adapter on a base, dequantized blocks
    if "://" in uri or "+" in Path(uri).name or is_computed:
        raise _refusal("an address that it does not read", uri)
    return uri


def _refusal(what: str, got: str, hint: str | None = None) -> ConfigError:
    return ConfigError(
        f"mergekit's task arithmetic cannot express {what}",
        where=FLAG,
        got=got,
        expected="one alpha for all tensors",
        hint=hint,
    )
