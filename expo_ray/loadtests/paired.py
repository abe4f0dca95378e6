"""Two services on the same prompts: which ratios changed, with bootstrap intervals.

Prompts are resampled, not requests: rounds repeat a prompt, and what one prompt makes of both
models goes together. Rounds are resampled too: a machine that is slow for some seconds is slow for
all requests of a round. In a closed loop requests per second are the requests in flight over the
mean time that one takes, so that every ratio comes from the pairs alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Row = Mapping[str, Any]
_NUM_RESAMPLES = 4000
_CONFIDENCE = 0.95
_WORDS = {
    "tokens_per_request": ("answers", "longer", "shorter"),
    "seconds_per_request": ("time per request", "more", "less"),
    "requests_per_second": ("requests per second", "more", "fewer"),
    "tokens_per_second": ("tokens per second", "more", "fewer"),
}


def compare_requests(
    baseline: Sequence[Row], candidate: Sequence[Row], *, is_closed: bool, seed: int = 0
) -> dict[str, Any]:
    """Compare the measured requests of one load, pair by pair.

    Args:
        baseline: Rows of requests.parquet.
        candidate: The other's; a pair shares `request_id` (and `round` where given) and prompt.
        is_closed: Of a closed loop: only there does the service decide how many requests it
            completes, otherwise requests and tokens per second are None.
        seed: Of the bootstrap.

    Returns:
        `num_pairs` (both completed), `num_prompts`, `num_rounds`, `num_unpaired`, one
        `{"ratio", "ci_low", "ci_high", "changed"}` (candidate over baseline) or None per figure,
        and a `text` that says what changed.
    """
    sums = _sums(baseline, candidate)
    num_rounds, num_prompts = sums.shape[:2]
    num_pairs = int(sums[..., 0].sum())
    figures: dict[str, dict[str, Any] | None] = dict.fromkeys(_WORDS)
    if num_pairs:
        random = np.random.default_rng(seed)
        prompts = random.multinomial(num_prompts, [1 / num_prompts] * num_prompts, _NUM_RESAMPLES)
        rounds = random.multinomial(num_rounds, [1 / num_rounds] * num_rounds, _NUM_RESAMPLES)
        resampled = np.einsum("nr,np,rpk->kn", rounds, prompts, sums, optimize=True)
        # Rounds and prompts that share no pair tell nothing.
        drawn = resampled[:, resampled[0] > 0]
        point, spread = _ratios(sums.sum(axis=(0, 1))), _ratios(drawn)
        for name, ratio in point.items():
            if is_closed or not name.endswith("_per_second"):
                figures[name] = _with_interval(float(ratio), spread[name])
    measured = [sum(r["phase"] == "measured" for r in rows) for rows in (baseline, candidate)]
    return {
        "num_pairs": num_pairs,
        "num_prompts": num_prompts,
        "num_rounds": num_rounds,
        "num_unpaired": sum(measured) - 2 * num_pairs,
        **figures,
        "text": "; ".join(_say(name, figure) for name, figure in figures.items() if figure)
        or "no request completed on both sides",
    }


def _sums(baseline: Sequence[Row], candidate: Sequence[Row]) -> npt.NDArray[np.float64]:
    """Return per round and prompt: pairs, tokens and seconds of the baseline, of the candidate."""
    others = {_key(row): row for row in candidate if _usable(row)}
    sums: dict[tuple[int, str], npt.NDArray[np.float64]] = defaultdict(lambda: np.zeros(5))
    for row in baseline:
        other = others.get(_key(row))
        if not _usable(row) or other is None:
            continue
        pair = [1.0]
        for side in (row, other):
            pair += [side["output_tokens"], side["done_seconds"] - side["intended_seconds"]]
        sums[row.get("round", 0), row["prompt_id"]] += pair
    rounds = sorted({number for number, _ in sums})
    prompts = sorted({prompt_id for _, prompt_id in sums})
    none = np.zeros(5)
    table = [[sums.get((number, prompt), none) for prompt in prompts] for number in rounds]
    return np.array(table).reshape(len(rounds), len(prompts), 5)


def _key(row: Row) -> tuple[Any, ...]:
    return row.get("round", 0), row["request_id"], row["prompt_id"]


def _usable(row: Row) -> bool:
    known = row["error"] is None and row["output_tokens"] is not None
    return known and row["phase"] == "measured"


def _ratios(sums: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    _, tokens, seconds, other_tokens, other_seconds = sums
    longer, slower = other_tokens / tokens, other_seconds / seconds
    return {
        "tokens_per_request": longer,
        "seconds_per_request": slower,
        "requests_per_second": 1 / slower,
        "tokens_per_second": longer / slower,
    }


def _with_interval(ratio: float, spread: npt.NDArray[np.float64]) -> dict[str, Any]:
    tail = 100 * (1 - _CONFIDENCE) / 2
    low, high = (float(q) for q in np.percentile(spread, [tail, 100 - tail]))
    return {"ratio": ratio, "ci_low": low, "ci_high": high, "changed": not low <= 1 <= high}


def _say(name: str, figure: Mapping[str, Any]) -> str:
    what, more, less = _WORDS[name]
    how = (more if figure["ratio"] > 1 else less) if figure["changed"] else "cannot be told apart"
    interval = f"{figure['ci_low']:.2f} to {figure['ci_high']:.2f}"
    return f"{what}: {how} ({figure['ratio']:.2f} times, {interval})"
