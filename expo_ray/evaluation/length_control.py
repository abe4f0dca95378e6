"""AlpacaEval 2.0's length-controlled win rate, by the model of its own package.

That model is fitted to a judge's preferences for one model and for two that were told to be short
or long; these stand in `df_gamed.csv` of the dataset `tatsu-lab/alpaca_eval`, which the package
does not ship and fetches from the Hub. Here it is read from a folder.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from expo_ray.errors import TableError
from expo_ray.extras import missing_modules, require_extra

GAMED = "df_gamed.csv"
_NEEDED = (
    f"the length-controlled win rate needs {GAMED} of the dataset tatsu-lab/alpaca_eval, which the "
    "package alpaca_eval does not ship: give the folder where it lies"
)
_COLUMNS = {"model", "index", "preference", "std_delta_len", "not_gamed_baseline"}


class LengthControlled(NamedTuple):
    """A win rate as if both models' answers were equally long, in percent, or why there is none."""

    win_rate: float | None
    standard_error: float | None
    reason: str | None
    gamed_sha256: str | None


def length_controlled(
    rows: Sequence[Mapping[str, Any]], folder: str | Path | None
) -> LengthControlled:
    """Fit the package's model to annotations.

    Args:
        rows: Annotations of all of the leaderboard's instructions, in its order.
        folder: Where `df_gamed.csv` lies.

    Returns:
        The win rate; None with the reason where a file, the package or annotations are missing.

    Raises:
        MissingExtraError: The folder is given and the package is not installed.
        TableError: The folder lacks the file, or the file is another one.
    """
    if folder is None:
        more = "" if not missing_modules("alpaca-eval") else ", and install the extra `alpaca-eval`"
        return LengthControlled(None, None, _NEEDED + more, None)
    require_extra("alpaca-eval", where="length_control")
    file = Path(folder) / GAMED
    if not file.is_file():
        raise TableError(f"there is no {GAMED}", where=folder, hint=_NEEDED)

    import pandas as pd

    with calm_logs():
        from alpaca_eval.metrics import glm_winrate

    gamed = pd.read_csv(file)
    if lacking := sorted({*_COLUMNS, "instruction_difficulty"} - set(gamed.columns)):
        raise TableError(
            f"it is not AlpacaEval's {GAMED}",
            where=file,
            got=", ".join(gamed.columns),
            expected=", ".join(lacking),
        )
    num_instructions = gamed["index"].nunique()
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    if num_instructions != len(rows):
        reason = f"{GAMED} is of {num_instructions} instructions, the annotations of {len(rows)}"
        return LengthControlled(None, None, reason, digest)
    fetch = glm_winrate.hf_hub_download
    try:
        # The one file that it would fetch.
        glm_winrate.hf_hub_download = lambda **_: str(file)
        found = glm_winrate.get_length_controlled_winrate(
            pd.DataFrame(rows), save_weights_dir=None, is_warn_extreme_changes=False
        )
    finally:
        glm_winrate.hf_hub_download = fetch
    return LengthControlled(
        float(found["length_controlled_winrate"]), float(found["lc_standard_error"]), None, digest
    )


@contextmanager
def calm_logs() -> Iterator[None]:
    """Keep the level of the root logger, which importing `alpaca_eval` sets to INFO."""
    root = logging.getLogger()
    level = root.level
    try:
        yield
    finally:
        root.setLevel(level)
