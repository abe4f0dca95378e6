"""What a study is: named settings, each a pair of models that are made in a stated way. Light."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from expo_ray.errors import ConfigError, argument
from expo_ray.flags import Flag
from expo_ray.lab.experiments.kind import LAB_PANEL
from expo_ray.lab.settings import CODE_VERSION, LabSettings

# Part of every name in the cache: raise it whenever the same study would give other numbers.
STUDY_VERSION = 1
STUDY_NAME = "study.json"
"""What a study found, in its output folder."""

Kind = Literal["base", "sft", "preference", "grpo", "merge"]

ALPHAS = (-0.5, 0.0, 0.25, 0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0)
"""From half way back to the initial model to far beyond the useful range."""

SMALL: Mapping[str, Any] = {"num_sft_examples": 3000, "num_preference_pairs": 1000}


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """How one model is made. What it is made from and by names it in the cache."""

    kind: Kind
    parents: tuple[Model, ...] = ()
    """Where training starts; of a merge the common parent, then what is merged."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the laboratory in the place of the study's own."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the kind takes besides: see `making.MAKERS`."""
    variant: str = ""
    """Draws initial weights, data and order of its own; the same in all else."""

    def settings_in(self, lab: LabSettings) -> LabSettings:
        """Return the laboratory in which it is trained."""
        return LabSettings.model_validate({**lab.model_dump(), **self.settings})

    def digest(self, lab: LabSettings) -> str:
        """Return its name in the cache: 16 hex digits over all that it is made from."""
        settings = self.settings_in(lab)
        facts = {
            "versions": [CODE_VERSION, STUDY_VERSION],
            "kind": self.kind,
            "parents": [parent.digest(lab) for parent in self.parents],
            "settings": settings.model_dump(mode="json", exclude=settings.unused),
            "options": dict(self.options),
            "variant": self.variant,
        }
        return digest_of(facts)


@dataclass(frozen=True, kw_only=True, slots=True)
class Arm:
    """One setting of a study."""

    name: str
    initial: Model
    aligned: Model
    is_alignment_step: bool = True
    """Whether aligned was aligned from initial itself: what extrapolation is meant for."""
    published: str = ""
    """What the paper found with this setting."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Study:
    """One experiment."""

    name: str
    title: str
    question: str
    arms: tuple[Arm, ...]
    published: str
    """What the paper found, in a sentence."""
    limits: str
    """What the study does not show, in a sentence."""
    alphas: tuple[float, ...] = ALPHAS
    yardstick: str | None = None
    """The arm whose aligned model, as it is, all are compared with; None takes the first arm."""


def parse_seeds(text: str) -> tuple[int, ...]:
    """Read whole numbers between commas.

    Raises:
        ConfigError: One is none.
    """
    try:
        return tuple(int(number) for number in text.split(","))
    except ValueError as error:
        raise ConfigError(
            "seeds are whole numbers",
            where=argument("seeds"),
            got=text,
            expected="numbers with commas between them, such as 2,3,4",
        ) from error


class StudySettings(BaseModel):
    """Settings of a run of any study."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    seeds: Annotated[
        tuple[int, ...], Flag(panel=LAB_PANEL, metavar="N[,N...]", parse=parse_seeds)
    ] = Field(
        (2, 3, 4),
        min_length=1,
        description="Each draws data, models and answers anew, and takes minutes; 0 and 1 "
        "chose the laboratory's defaults. Fewer than three give no interval over seeds.",
    )
    num_prompts: Annotated[int, Flag(panel=LAB_PANEL)] = Field(
        300, ge=4, le=720, description="Evaluation prompts of each seed."
    )
    small: Annotated[bool, Flag(panel=LAB_PANEL)] = Field(
        False, description="A quarter of the training data: shows that it runs, and little more."
    )
    cache: Annotated[str, Flag(panel=LAB_PANEL, metavar="DIR")] = Field(
        "runs/studies",
        description="Folder of models and curves, which all studies share; on a cluster a folder "
        "that all nodes see.",
    )
    mergekit: Annotated[str, Flag(panel=LAB_PANEL, metavar="COMMAND")] = Field(
        "mergekit-yaml",
        description="mergekit's command, for merged baselines; it needs an environment of its own.",
    )

    def lab(self, seed: int) -> LabSettings:
        """Return the laboratory of a seed."""
        sizes = SMALL if self.small else {}
        return LabSettings(seed=seed, num_eval_prompts=self.num_prompts, **sizes)


def digest_of(facts: Mapping[str, Any]) -> str:
    """Return 16 hex digits over plain data."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
