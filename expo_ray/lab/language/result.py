"""Where the files of a laboratory of a real language model lie. Light."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from expo_ray.json_text import parse_json
from expo_ray.lab.language.settings import LanguageSettings
from expo_ray.lab.language.source import checkpoint_path


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageResult:
    """Paths of a finished laboratory."""

    folder: Path
    initial: Path
    """SmolLM2-135M-Instruct, shared by all laboratories of the cache."""
    aligned: Mapping[float, Path]
    """By the share of the preference data, those that were asked for."""
    reward_model: Path
    guard_reward_model: Path
    prompts: Path
    """JSONL of evaluation prompts with constraints of the kinds that were trained for."""
    other_prompts: Path
    """The same with constraints of other kinds."""
    answers: Path
    """Responses table of the initial model, of which the pairs were made."""
    record: Path
    """`lab.json`: settings and facts of all models so far. Written last."""


def language_paths(cache: str | Path, settings: LanguageSettings) -> LanguageResult:
    """Return the paths that these settings have below `cache`, whether or not they exist."""
    folder = Path(cache) / settings.digest()[:16]
    return LanguageResult(
        folder=folder,
        initial=checkpoint_path(Path(cache)),
        aligned={share: folder / f"aligned-{share:g}" for share in settings.fractions},
        reward_model=folder / "reward-model",
        guard_reward_model=folder / "guard-reward-model",
        prompts=folder / "prompts.jsonl",
        other_prompts=folder / "other-prompts.jsonl",
        answers=folder / "answers.parquet",
        record=folder / "lab.json",
    )


def find_language(cache: str | Path, settings: LanguageSettings) -> LanguageResult | None:
    """Return the finished laboratory of these settings; None where something must be trained."""
    result = language_paths(cache, settings)
    if not result.record.exists():
        return None
    models = parse_json(result.record.read_text(encoding="utf-8"))["models"]
    return result if all(path.name in models for path in result.aligned.values()) else None
