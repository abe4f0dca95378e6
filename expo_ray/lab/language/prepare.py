"""Preparing the laboratory of a real language model.

    initial --answers--> pairs --> aligned-0.05, aligned-0.1, ..., reward-model, guard-reward-model

The initial model answers all prompts in one engine; what stands in the table of answers is not
asked again. Then every model is trained in its own Ray task, see `expo_ray.lab.steps`. On a cluster
the cache folder must be shared by all nodes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from expo_ray.checkpoints import atomic_write_json, atomic_write_text
from expo_ray.cluster import ray_session
from expo_ray.errors import EvaluationError, argument
from expo_ray.extras import missing_modules, require_extra
from expo_ray.json_text import parse_json
from expo_ray.lab.data import Pair
from expo_ray.lab.language.pairs import TRAINING, make_pairs, training_prompts
from expo_ray.lab.language.prompts import (
    TRAINED,
    UNTRAINED,
    LanguagePrompt,
    Purpose,
    draw_prompts,
)
from expo_ray.lab.language.result import LanguageResult, find_language, language_paths
from expo_ray.lab.language.settings import CODE_VERSION, LanguageSettings
from expo_ray.lab.language.source import smollm2
from expo_ray.lab.steps import Facts, OnStep, Step, only_one, train_missing
from expo_ray.progress import NullProgress, Progress
from expo_ray.serving.engines.options import EngineOptions
from expo_ray.serving.engines.registry import AUTO
from expo_ray.serving.generator_replicas import GeneratorReplicas
from expo_ray.serving.source import ModelSource
from expo_ray.tables import Prompt, read_table

Pairs = Mapping[Purpose, Sequence[Pair | None]]
# Room for any prompt of the laboratory and its answer; vLLM keeps a cache of that size.
CONTEXT_TOKENS = 512


def prepare_language(
    cache: str | Path,
    settings: LanguageSettings,
    *,
    address: str | None = None,
    progress: Progress | None = None,
) -> LanguageResult:
    """Train the laboratory of these settings, or what is missing of it.

    Args:
        cache: Folder of laboratories; each lies in a folder named after its settings.
        settings: What to train.
        address: Ray cluster; None means `RAY_ADDRESS`, else a local Ray.
        progress: Shows answers and training steps.

    Returns:
        Where everything lies.

    Raises:
        MissingExtraError: A package that it needs is not installed.
        EvaluationError: A training failed; what is finished is kept for the next call.
    """
    cache = Path(cache).absolute()  # workers are called elsewhere
    finished = find_language(cache, settings)
    if finished is not None:
        return finished
    require_extra("language", where="lab language")
    result = language_paths(cache, settings)
    result.folder.mkdir(parents=True, exist_ok=True)
    progress = progress or NullProgress()
    with only_one(cache, progress):
        smollm2(cache)
    with only_one(result.folder, progress):
        return find_language(cache, settings) or _prepare(settings, result, address, progress)


def _prepare(
    settings: LanguageSettings, result: LanguageResult, address: str | None, progress: Progress
) -> LanguageResult:
    for path, kinds in ((result.prompts, TRAINED), (result.other_prompts, UNTRAINED)):
        drawn = draw_prompts(settings, "evaluation", settings.num_eval_prompts, kinds=kinds)
        rows = (prompt.row(f"{path.stem}-{i:05d}") for i, prompt in enumerate(drawn))
        atomic_write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    prompts = {purpose: training_prompts(settings, purpose) for purpose in TRAINING}
    with ray_session(address):
        answers = answer(settings, result, prompts, progress)
        pairs = {p: make_pairs(settings, asked, answers) for p, asked in prompts.items()}
        _write_pairs(result.folder, pairs)
        facts = train_missing(_steps(settings, result, pairs), progress)
    record = {
        "schema_version": 1,
        "code_version": CODE_VERSION,
        "settings": settings.model_dump(mode="json"),
        "models": {**_known_facts(result.record), **facts},
    }
    atomic_write_json(result.record, record)
    return result


def answer(
    settings: LanguageSettings,
    result: LanguageResult,
    prompts: Mapping[Purpose, Mapping[str, LanguagePrompt]],
    progress: Progress,
) -> list[dict[str, object]]:
    """Let the initial model answer what it has not yet, on the Ray that is connected to.

    Returns:
        The rows of the table of its answers.
    """
    asked = [
        Prompt(
            prompt_id=prompt_id,
            messages=({"role": "user", "content": prompt.text},),
            checked={"constraints": prompt.constraints},
        )
        for group in prompts.values()
        for prompt_id, prompt in group.items()
    ]
    options = EngineOptions(max_model_len=CONTEXT_TOKENS)
    with GeneratorReplicas(1, language_engine(settings.engine), options=options) as replicas:
        replicas.write_responses(
            ModelSource(model=str(result.initial)),
            asked,
            result.answers,
            sampling=settings.sampling,
            progress=progress,
        )
    rows: list[dict[str, object]] = read_table(result.answers).to_pylist()
    return rows


def language_engine(engine: str) -> str:
    """Return the engine that the laboratory takes: vLLM on a CPU, too, where it is installed."""
    if engine != AUTO:
        return engine
    return "transformers" if missing_modules("vllm") else "vllm"


def _steps(settings: LanguageSettings, result: LanguageResult, pairs: Pairs) -> list[Step]:
    """Return what is to be trained, reward models first: they take longest."""
    of_scorer, of_guard = (_made(pairs[purpose], purpose) for purpose in TRAINING[1:])
    # Each is tried on the pairs of the other, which are about other topics.
    trainings = {
        result.reward_model: partial(_train_reward_model, of_scorer, of_guard),
        result.guard_reward_model: partial(_train_reward_model, of_guard, of_scorer),
    }
    for share, model in result.aligned.items():
        of_share = _made(pairs["aligned"][: settings.num_prompts(share)], model.name)
        trainings[model] = partial(_train_aligned, of_share)
    return [
        Step(model=model, train=partial(train, settings, result.initial))
        for model, train in trainings.items()
    ]


def _made(pairs: Sequence[Pair | None], training: str) -> list[Pair]:
    made = [pair for pair in pairs if pair is not None]
    if not made:
        raise EvaluationError(
            "no prompt has two answers of which one keeps to more than the other",
            where=training,
            got=f"{len(pairs)} prompts",
            hint=f"set more of {argument('num_preference_prompts')} or "
            f"{argument('num_reward_prompts')}",
        )
    return made


def _write_pairs(folder: Path, pairs: Pairs) -> None:
    """Write the pairs as preference files, of the training that each is for."""
    for purpose, made in pairs.items():
        rows = ({k: getattr(p, k) for k in ("prompt", "chosen", "rejected")} for p in made if p)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        atomic_write_text(folder / f"pairs-{purpose}.jsonl", text)


def _train_aligned(
    pairs: Sequence[Pair],
    settings: LanguageSettings,
    initial: Path,
    output: Path,
    on_step: OnStep,
) -> Facts:
    from expo_ray.lab.language.training import train_aligned

    return train_aligned(settings, initial, pairs, output, on_step)


def _train_reward_model(
    pairs: Sequence[Pair],
    check: Sequence[Pair],
    settings: LanguageSettings,
    initial: Path,
    output: Path,
    on_step: OnStep,
) -> Facts:
    from expo_ray.lab.language.training import train_reward_model

    return train_reward_model(settings, initial, pairs, check, output, on_step)


def _known_facts(record: Path) -> dict[str, Facts]:
    if not record.exists():
        return {}
    facts: dict[str, Facts] = parse_json(record.read_text(encoding="utf-8"))["models"]
    return facts
