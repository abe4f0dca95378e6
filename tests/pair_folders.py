"""Two folders with what the commands write for the models of a pair."""

from __future__ import annotations

import json
from pathlib import Path


def write_pair_folders(folder: Path) -> tuple[Path, Path]:
    """Write results of `dpo` and `expo`, in `results-of-dpo` and `results-of-expo`."""
    sides = (
        ("dpo", 10.0, 1.0, 1500, 6.0, 0.4, 0.67, 100.0),
        ("expo <script>", 25.0, 2.0, 1800, 6.5, 0.3, 0.60, 98.0),
    )
    return tuple(_write(folder, *side) for side in sides)  # type: ignore[return-value]


def _write(
    folder: Path,
    model: str,
    win_rate: float,
    error: float,
    length: int,
    rating: float,
    reach: float,
    share: float,
    speed: float,
) -> Path:
    name = model.partition(" ")[0]
    place = folder / f"results-of-{name}"
    (place / "harness").mkdir(parents=True)
    made = {
        "schema_version": 1,
        "model": model,
        "weights_digest": f"blake3:{name}",
        "sampling": '{"temperature": 0.7}',
        "chat_template": "sha256:1",
    }
    alpaca = {
        "benchmark": "alpaca-eval",
        "baseline": "gpt4",
        "judge": "annotator by big",
        "win_rate": win_rate,
        "standard_error": error,
        "length_controlled_win_rate": None,
        "length_controlled_standard_error": None,
        "avg_length": length,
        "n_total": 805,
        "n_missing": 0,
    }
    score = {"mean": rating, "ci_low": rating - reach, "ci_high": rating + reach}
    ratings = dict.fromkeys(("average", "first_turn", "second_turn"), score)
    mt_bench = {"benchmark": "mt-bench", "judge": "big", "judge_prompts": "1", **ratings}
    point = {"mode": "closed", "concurrency": 4, "output_throughput": speed}
    load = {"target": model, "weights_digest": f"blake3:{name}", "points": [point]}
    row = {"exact_match,strict-match": share, "exact_match_stderr,strict-match": 0.013}
    harness = {"results": {"gsm8k": row}, "n-shot": {"gsm8k": 5}}
    for file, document in (
        ("alpaca-eval.json", made | alpaca),
        ("mt-bench.json", made | mt_bench),
        ("summary.json", load),
        ("harness/gsm8k.json", harness),
    ):
        (place / file).write_text(json.dumps(document))
    return place
