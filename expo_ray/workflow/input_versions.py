"""What tells the inputs of a run from others at the same addresses, without reading all of them.

A rerun skips what stands. Answers to other prompts, of other weights, or judged by other code must
not be laid beside it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from expo_ray.errors import ConfigError
from expo_ray.tables import Prompt
from expo_ray.workflow import stages


def versions_of_inputs(run: stages.Run) -> dict[str, dict[str, str]]:
    """Return what a run works on, by what it is: each an address, and a digest of its version.

    Args:
        run: With its pair, reward models, prompts and further sets.
    """
    found = {
        f"the {name} checkpoint": _version(side.uri, side.version())
        for name, side in run.sides.items()
    }
    for name, inner in {"": run, **run.sets}.items():
        of = f" of the set {name}" if name else ""
        found[f"the prompts{of}"] = _version(inner.prompts_path, _rows(inner.prompts))
        for label, spec in inner.reward_models.items():
            version = spec.kind.version(spec)
            if version is not None:
                found[f"the reward model {label}{of}"] = _version(spec.text, version)
    return found


def refuse_other_versions(
    now: Mapping[str, Mapping[str, str]], before: Mapping[str, Mapping[str, str]]
) -> None:
    """Check that inputs are what they were when a run began.

    Args:
        now: As `versions_of_inputs` gives them.
        before: As they were recorded; those of runs from before are not known.

    Raises:
        ConfigError: One has changed where it lies.
    """
    for name, version in now.items():
        was = before.get(name, version)
        if was["where"] == version["where"] and was != version:
            raise ConfigError(
                f"{name} is another one than when this run began",
                where=version["where"],
                got=f"version {version['digest']}",
                expected=f"version {was['digest']}",
                hint="start again in another output folder; what was made would be mixed",
            )


def _version(where: str, content: object) -> dict[str, str]:
    text = json.dumps(content, sort_keys=True)
    return {"where": where, "digest": hashlib.sha256(text.encode()).hexdigest()[:16]}


def _rows(prompts: Sequence[Prompt]) -> list[Any]:
    return [[p.prompt_id, list(p.messages), dict(p.checked)] for p in prompts]
