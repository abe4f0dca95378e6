"""Every knob of the laboratory of a real language model."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class LanguageSettings(BaseModel):
    """Settings of data and training."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
