"""What counts as a score in files that others wrote, and which of several metrics is meant."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Sequence
from typing import Any

from expo_ray.errors import TableError, argument

# Measures of which less is better. Words of a name: the first wherever they stand (`eval_wer`), the
# others alone or at its end (`dev_loss`), for `error_free` is none.
_LESS_IS_BETTER = frozenset(
    {"wer", "cer", "ter", "perplexity", "ppl", "bpb", "brier", "nll", "mse", "rmse", "mae", "ece"}
)
_LESS_AT_THE_END = (
    "loss",
    "error",
    "error_rate",
    "bits_per_byte",
    "edit_distance",
    "cross_entropy",
)
_WORDS = {"true": 1.0, "false": 0.0}
_NONE = frozenset({"", "na", "nan", "null", "none"})


def choose_metric(wanted: str | None, names: Sequence[str], where: str) -> str:
    """Return the metric that is meant.

    Args:
        wanted: What was asked for; a name without its filter (`acc` for `acc,none`) will do where
            there is one such; None where the file has one metric only.
        names: Those of the file.
        where: The file, for errors.

    Raises:
        TableError: There is no such metric, or it is not clear which one is meant.
    """
    fitting = list(names) if wanted is None else [n for n in names if n == wanted]
    if wanted is not None and not fitting:
        fitting = [name for name in names if name.partition(",")[0] == wanted]
    if len(fitting) == 1:
        return fitting[0]
    close = difflib.get_close_matches(wanted or "", names, n=1)
    raise TableError(
        "it is not clear which score is meant" if fitting else "there is no such score",
        where=where,
        got=wanted or (", ".join(names) or "no score"),
        expected=f"one of {', '.join(fitting or names)}" if names else "numbers",
        hint=f"did you mean {close[0]}?" if close and not fitting
        else f"name one, such as {argument('metric', (fitting or names)[0])}" if names else None,
    )  # fmt: skip


def is_less_better(metric: str) -> bool:
    """Return whether a metric is known by its name as one of which less is better.

    Args:
        metric: Its name, perhaps with `,FILTER` or `/KEY` behind it.
    """
    name = re.sub(r"[^a-z0-9]+", "_", metric.partition(",")[0].lower()).strip("_")
    return bool(_LESS_IS_BETTER & set(name.split("_"))) or any(
        name == end or name.endswith(f"_{end}") for end in _LESS_AT_THE_END
    )


def score_of(value: Any, where: str) -> float | None:
    """Return a score as a number, None where there is none.

    Raises:
        TableError: It is neither a number nor true, false or nothing.
    """
    if isinstance(value, str):
        word = value.strip().lower()
        if word in _NONE:
            return None
        value = _WORDS.get(word, value)
    if value is None:
        return None
    try:
        number = float(value) if isinstance(value, bool | int | float | str) else math.inf
    except ValueError:
        number = math.inf
    if math.isnan(number):
        return None
    if math.isinf(number):
        raise TableError(
            "a score is not a number", where=where, got=repr(value)[:80], expected="a number"
        )
    return number
