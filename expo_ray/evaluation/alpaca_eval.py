"""AlpacaEval 2.0: the published figures from a judge's annotations.

A preference lies between 1 (the baseline is better) and 2 (the model is better); 1.5 is a draw, and
so is 0, which older judges wrote for one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from expo_ray.errors import TableError
from expo_ray.evaluation.length_control import length_controlled
from expo_ray.json_text import parse_json

SCHEMA_VERSION = 1
BENCHMARK = "alpaca-eval"
_DRAW = 1.5


class AlpacaEvalMetrics(TypedDict):
    """One model's row of the leaderboard."""

    schema_version: int
    benchmark: str
    """`alpaca-eval`."""
    model: str | None
    """Name of the judged model, None where the annotations do not say."""
    baseline: str | None
    win_rate: float
    """Mean preference for the model, percent."""
    standard_error: float
    """Of the win rate, percent; 0 for a single annotation."""
    n_wins: int
    n_wins_base: int
    n_draws: int
    n_total: int
    """Annotations with a preference."""
    n_missing: int
    """Annotations without one (the judge failed); they count nowhere else."""
    discrete_win_rate: float
    """Share of wins, draws by half, percent."""
    avg_length: int
    """Mean characters of the model's outputs, rounded down as on the leaderboard."""
    length_controlled_win_rate: float | None
    """As if both models' answers were equally long, percent, by AlpacaEval's own model."""
    length_controlled_standard_error: float | None
    length_controlled_reason: str | None
    """Why there is none."""
    length_controlled_sha256: str | None
    """Of the preferences for other models that it was fitted to, too."""
    judge: str | None
    """The annotator, None where the annotations do not say."""
    weights_digest: str | None
    """Of the judged model; None where another tool made its outputs, and so the next two."""
    sampling: str | None
    chat_template: str | None


def alpaca_eval_metrics(
    annotations_path: str | Path, *, length_control: str | Path | None = None
) -> AlpacaEvalMetrics:
    """Compute win rates and counts from an annotations file.

    Args:
        annotations_path: JSON list of annotations, as AlpacaEval writes them; `output_2` is the
            judged model's.
        length_control: Folder with `df_gamed.csv` of the dataset `tatsu-lab/alpaca_eval`, for the
            length-controlled win rate; the annotations are of the 805 instructions in order then.

    Returns:
        Win rates with their standard errors, counts, and the length of the answers.

    Raises:
        MissingExtraError: The package of the length-controlled win rate is not installed.
        TableError: The file is missing or malformed, with the number of the row from 0.

    Example:
        >>> metrics = expo_ray.alpaca_eval_metrics("annotations.json")
        >>> metrics["n_wins"], metrics["n_wins_base"], metrics["n_draws"]
        (2, 1, 1)
        >>> metrics["discrete_win_rate"]
        62.5
    """
    path = Path(annotations_path)
    rows = read_rows(path)
    given = [annotated_preference(row, f"{path} row {i}") for i, row in enumerate(rows)]
    lengths = [len(_text(row, "output_2", f"{path} row {i}")) for i, row in enumerate(rows)]
    scores = [preference - 1 for preference in given if preference is not None]
    if not scores:
        raise TableError("no annotation has a preference", where=path, got=f"{len(rows)} rows")
    num_wins = sum(score > _DRAW - 1 for score in scores)
    num_draws = sum(score == _DRAW - 1 for score in scores)
    spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
    controlled = length_controlled(rows, length_control)
    return AlpacaEvalMetrics(
        schema_version=SCHEMA_VERSION,
        benchmark=BENCHMARK,
        model=one_name(rows, "generator_2", path),
        baseline=one_name(rows, "generator_1", path),
        win_rate=100 * statistics.fmean(scores),
        standard_error=100 * spread / math.sqrt(len(scores)),
        n_wins=num_wins,
        n_wins_base=len(scores) - num_wins - num_draws,
        n_draws=num_draws,
        n_total=len(scores),
        n_missing=len(rows) - len(scores),
        discrete_win_rate=100 * (num_wins + num_draws / 2) / len(scores),
        avg_length=int(statistics.fmean(lengths)),
        length_controlled_win_rate=controlled.win_rate,
        length_controlled_standard_error=controlled.standard_error,
        length_controlled_reason=controlled.reason,
        length_controlled_sha256=controlled.gamed_sha256,
        judge=one_name(rows, "annotator", path),
        weights_digest=one_name(rows, "weights_digest", path),
        sampling=one_name(rows, "sampling", path),
        chat_template=one_name(rows, "chat_template", path),
    )


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Read a list of objects: annotations, or outputs.

    Raises:
        TableError: The file is missing or malformed.
    """
    try:
        rows = parse_json(path.read_bytes())
    except OSError as error:
        raise TableError(
            "the annotations cannot be read", where=path, got=error.strerror
        ) from error
    except ValueError as error:
        raise TableError("the annotations are not JSON", where=path, got=error) from error
    if not isinstance(rows, list) or not rows:
        raise TableError("no annotations", where=path, expected="a JSON list with rows")
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise TableError(
                "an annotation is not an object",
                where=f"{path} row {i}",
                got=type(row).__name__,
            )
    return rows


def annotated_preference(row: Mapping[str, Any], where: str) -> float | None:
    """Return the preference of an annotation, draws as 1.5; None where the judge gave none.

    Raises:
        TableError: It is malformed.
    """
    if "preference" not in row:
        raise TableError("an annotation has no preference", where=where, got=", ".join(row))
    value = row["preference"]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not _in_range(value):
        raise TableError(
            "a preference is out of range",
            where=where,
            got=value,
            expected="1 (baseline) to 2 (model), 0 for a draw, or null",
        )
    return float(value) if value else _DRAW


def _in_range(value: float) -> bool:
    return value == 0 or 1 <= value <= 2


def _text(row: dict[str, Any], field: str, where: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        raise TableError(
            f"an annotation has no {field}", where=where, got=type(value).__name__, expected="text"
        )
    return value


def one_name(rows: Sequence[Mapping[str, Any]], field: str, path: Path) -> str | None:
    """Return what all annotations have in a field.

    Raises:
        TableError: They differ.
    """
    names = {row.get(field) for row in rows}
    if len(names) > 1:
        raise TableError(
            "the annotations are of several models",
            where=f"{path}, {field}",
            got=", ".join(sorted(str(name) for name in names)),
            expected="one",
        )
    name = names.pop()
    return None if name is None else str(name)
