"""Flags of benchmarks that a model answers: declared once, given to what answers as they are."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, Field

from expo_ray.cli.model_options import COMMON, FIRST, FlagsOf, Given
from expo_ray.cli.options import (
    PAIR_PANEL,
    AlphaOption,
    AlphaRulesOption,
    EngineOption,
    ExtraTensors,
    InitialOption,
    ReasoningOption,
    Replicas,
)
from expo_ray.cli.session import AddressOption
from expo_ray.flags import Flag
from expo_ray.serving.engines.options import ENGINE_PANEL
from expo_ray.serving.sampling import SAMPLING_PANEL


def _text(option: Any) -> str:
    """Return the help that an option has in other commands."""
    return str(option.__metadata__[0].help)


class _Answering(BaseModel):
    initial: Annotated[str | None, Flag(panel=FIRST, metavar="MODEL")] = Field(
        None, description=_text(InitialOption)
    )
    alpha: Annotated[float | None, Flag(panel=FIRST)] = Field(None, description=_text(AlphaOption))
    alpha_rules: Annotated[str | None, Flag(panel=FIRST, metavar="FILE")] = Field(
        None, description=_text(AlphaRulesOption)
    )
    extra_tensors: Annotated[
        tuple[str, ...], Flag(panel=PAIR_PANEL, metavar="copy:GLOB", repeats=True)
    ] = Field((), description=_text(ExtraTensors))
    max_tokens: Annotated[int | None, Flag(panel=SAMPLING_PANEL)] = Field(
        None, ge=1, description="Longest answer; by default 2048 (AlpacaEval) or 1024 (MT-Bench)."
    )
    seed: Annotated[int | None, Flag(panel=SAMPLING_PANEL)] = Field(
        None, ge=0, description="Seed of the run; by default 42."
    )
    reasoning: Annotated[str, Flag(panel=SAMPLING_PANEL, metavar="TAG")] = Field(
        "auto", description=_text(ReasoningOption)
    )
    engine: Annotated[str, Flag(panel=ENGINE_PANEL, metavar="NAME")] = Field(
        "auto", description=_text(EngineOption)
    )
    num_replicas: Annotated[int, Flag(name="--replicas", panel=ENGINE_PANEL)] = Field(
        1, ge=1, description=_text(Replicas)
    )
    address: Annotated[str | None, Flag(panel=COMMON, metavar="RAY")] = Field(
        None, description=_text(AddressOption)
    )


AnswerFlags = Annotated[Given, FlagsOf(_Answering)]
"""What was given of them; commands that answer nothing refuse all of it."""
