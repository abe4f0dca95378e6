"""What choosing alpha was worth in many laboratories, shown beside the one of a run.

The record is measured, not made here: `benchmarks/selection_proof.py --summarize ... --write`
leaves it in this package, because a report has to open without the repository.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expo_ray.reports.wording import percent

RECORD = Path(__file__).with_name("selection_proof.json")


def proof_page(path: Path = RECORD) -> dict[str, Any] | None:
    """Return the recorded proof with its sentences; None where none is recorded.

    Args:
        path: The record.
    """
    if not path.exists():
        return None
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {**record, "sentences": _sentences(record)}


def _sentences(record: dict[str, Any]) -> list[str]:
    runs, kept, total = record["num_runs"], record["num_kept"], record["num_controls"]
    sentences = []
    if record["num_cases"] < record["num_expected"]:
        sentences.append(
            f"The proof is not finished: {record['num_cases']} of {record['num_expected']} "
            "cases are measured."
        )
    share = record["recovered"]["share"]
    if share is not None:
        sentences.append(
            f"In {runs} laboratories that nobody had looked at before, the guarded selection "
            f"recovered {percent(share)} of the truth that an oracle would have gained "
            f"(95% interval over laboratories {percent(record['recovered']['ci_low'])} to "
            f"{percent(record['recovered']['ci_high'])})."
        )
    worse = record["significantly_worse"]
    sentences.append(
        f"It was significantly worse than the aligned model in {worse['chosen'][1]} of them, the "
        f"highest reward alone in {worse['reward_only'][1]} (corrected for their number)."
    )
    if total:
        sentences.append(
            f"Of {total} directions that mean nothing, it kept the aligned model on {kept}; "
            f"without asking first whether the pair is fit, on {record['num_kept_by_choice']}."
        )
    return sentences
