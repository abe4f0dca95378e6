"""The truth of one pair against alpha: a file per alpha, kept for every study that asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from expo_ray.checkpoints import atomic_write_json
from expo_ray.extrapolation import diagnose, format_alpha
from expo_ray.json_text import parse_json
from expo_ray.lab.data import eval_prompts
from expo_ray.lab.settings import LabSettings
from expo_ray.serving.engines.interface import Row
from expo_ray.serving.engines.transformers_engine import TransformersEngine
from expo_ray.serving.sampling import SamplingParams
from expo_ray.serving.source import ModelSource
from expo_ray.tables import Message
from expo_ray.tables.seeds import row_seed

Point = Mapping[str, Any]
_BATCH_SIZE = 150
_NUM_EXAMPLES = 3
DIAGNOSIS_NAME = "diagnosis.json"


def point_path(folder: Path, alpha: float) -> Path:
    """Return where the measurement of one alpha lies."""
    return folder / f"alpha-{format_alpha(alpha)}.json"


def measure_curve(
    initial: Path, aligned: Path, lab: LabSettings, alphas: Sequence[float], folder: Path
) -> None:
    """Measure what is missing of one pair.

    The weights are those that `extrapolate` writes; the noise of a prompt is the same under every
    alpha, so that alphas are compared in pairs.

    Args:
        initial: Folder of the model before alignment.
        aligned: Folder of the model after it.
        lab: Laboratory whose evaluation prompts are asked.
        alphas: Which ones.
        folder: Where a file for each lies.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / DIAGNOSIS_NAME).exists():
        found = diagnose(str(initial), str(aligned), address="inline")
        facts = {
            "fit": found.fit,
            "warnings": list(found.warnings),
            "relative_delta": found.total["matrices"]["relative_delta"],
            "cosine": found.total["matrices"]["cosine"],
        }
        atomic_write_json(folder / DIAGNOSIS_NAME, facts)
    missing = [alpha for alpha in alphas if not point_path(folder, alpha).exists()]
    engine = TransformersEngine(device="cpu")
    for alpha in missing:
        engine.load(ModelSource(model=str(aligned), initial=str(initial), alpha=alpha))
        atomic_write_json(point_path(folder, alpha), {"alpha": alpha, **_ask(engine, lab)})


def read_curve(folder: Path, alphas: Sequence[float]) -> tuple[Mapping[str, Any], list[Point]]:
    """Return the diagnosis of a pair and its measurements, by rising alpha."""
    diagnosis = parse_json((folder / DIAGNOSIS_NAME).read_text(encoding="utf-8"))
    paths = (point_path(folder, alpha) for alpha in sorted(alphas))
    return diagnosis, [parse_json(path.read_text(encoding="utf-8")) for path in paths]


def _ask(engine: TransformersEngine, lab: LabSettings) -> dict[str, Any]:
    """Answer every evaluation prompt once and score the answers by the hidden rule."""
    chats: list[list[Message]] = [
        [{"role": "user", "content": row["prompt"]}] for row in eval_prompts(lab)
    ]
    sampling = SamplingParams(max_tokens=lab.max_new_tokens)
    seed = lab.derive_seed("study-sampling")
    rows = [
        Row(
            prompt_ids=engine.encode_chat(chat),
            params=sampling,
            seed=row_seed(seed, f"{index:04d}", 0),
            max_tokens=sampling.max_tokens,
        )
        for index, chat in enumerate(chats)
    ]
    answers = [answer for batch in _batches(rows) for answer in engine.generate(batch)]
    return {
        "weights_digest": engine.weights_digest,
        "truth": [
            lab.lab_task.truth(chat, answer.text)
            for chat, answer in zip(chats, answers, strict=True)
        ],
        "tokens": [answer.completion_tokens for answer in answers],
        "num_cut_off": sum(answer.finish_reason == "length" for answer in answers),
        "examples": [
            {"prompt": chat[0]["content"], "answer": answer.text}
            for chat, answer in zip(chats[:_NUM_EXAMPLES], answers, strict=False)
        ],
    }


def _batches(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    for start in range(0, len(rows), _BATCH_SIZE):
        yield rows[start : start + _BATCH_SIZE]
