"""Is this pair fit for extrapolation? Sizes of delta beside the published ones, and warnings."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expo_ray.errors import WorkError, first_names
from expo_ray.extrapolation.nodes.fanout import run_tasks
from expo_ray.extrapolation.outputs.results import SCHEMA_VERSION
from expo_ray.extrapolation.pairing.modules import GROUPS, layer_position, module_group
from expo_ray.extrapolation.pairing.tensor_pair import Pair
from expo_ray.extrapolation.pairing.token_tables import compare_tokenizers
from expo_ray.extrapolation.planning.plan import Plan, build_plan
from expo_ray.extrapolation.shards.tasks import MEASURE, shard_task
from expo_ray.progress import NullProgress, Progress

# arXiv 2404.16792, zephyr-7b: Frobenius norm of the change and the same per element (our reading:
# means over tensors, the second divided by the square root of the number of elements).
PUBLISHED_SCALES = (
    {"step": "SFT -> DPO (zephyr-7b)", "mean_delta_norm": 0.0357, "mean_delta_rms": 6.348e-6},
    {
        "step": "pretrained -> SFT (zephyr-7b)",
        "mean_delta_norm": 0.9882,
        "mean_delta_rms": 1.955e-4,
    },
)
# Halfway, on a logarithmic scale, between the two published steps.
SFT_LIKE_RMS = math.sqrt(6.348e-6 * 1.955e-4)
# Parameters. Smaller models train at higher rates: steps as large as that say nothing of them.
SMALL_MODEL = 1_000_000_000
LARGE_DELTA = 0.3
UNRELATED_DELTA = 0.7
UNRELATED_COSINE = 0.75
DIRECT_PARENT = "initial must be the direct parent that aligned was trained from"
_TASK_SIZE = "2GB"

Row = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """What was found about a pair."""

    initial: str
    aligned: str
    reasons: tuple[str, ...]
    """Why it is not fit."""
    doubts: tuple[str, ...]
    total: Row
    groups: dict[str, Row]
    layers: list[Row]
    tensors: dict[str, Row]
    identical: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def fit(self) -> bool:
        """Whether it is worth extrapolating."""
        return not self.reasons

    @property
    def is_broken(self) -> bool:
        """Whether it holds values that are not finite; neither model is worth keeping then."""
        return bool(self.total["num_nonfinite"])

    @property
    def warnings(self) -> tuple[str, ...]:
        """What speaks against it, the worst first."""
        return self.reasons + self.doubts

    def require_fit(self) -> None:
        """Go on with a fit pair only.

        Raises:
            WorkError: The pair is unfit.
        """
        if self.fit:
            return
        raise WorkError(
            "the pair is not fit for extrapolation",
            where=f"{self.initial} and {self.aligned}",
            got="; ".join(self.reasons),
            hint=DIRECT_PARENT,
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON of the command."""
        return {
            "schema_version": SCHEMA_VERSION,
            "initial": self.initial,
            "aligned": self.aligned,
            "fit": self.fit,
            "reasons": list(self.reasons),
            "warnings": list(self.warnings),
            **self.total,
            "groups": self.groups,
            "layers": self.layers,
            "published_scales": list(PUBLISHED_SCALES),
            "num_identical": len(self.identical),
            "identical": list(self.identical),
            "notes": list(self.notes),
            "tensors": self.tensors,
        }


def diagnose(
    initial: str | Path,
    aligned: str | Path,
    *,
    strict: bool = False,
    vocab_policy: str = "common-rows",
    extra_tensors: Sequence[str] = (),
    address: str | None = None,
    progress: Progress | None = None,
) -> Diagnosis:
    """Read both models once and say whether their difference is worth extrapolating.

    Args:
        initial: Folder of the model before alignment.
        aligned: Folder of the model after it.
        strict: Raise where the pair is unfit.
        vocab_policy: As for `extrapolate`.
        extra_tensors: As for `extrapolate`.
        address: As for `extrapolate`.
        progress: Where to report.

    Returns:
        Norms of delta by part, layer and tensor, and what speaks against the pair.

    Raises:
        RequestError: The two cannot be compared at all.
        WorkError: The pair is unfit, under `strict`.

    Example:
        >>> diagnosis = expo_ray.diagnose("sft", "dpo", address="inline")
        >>> diagnosis.fit
        True
        >>> diagnosis.total["relative_delta"] < 0.05
        True
    """
    plan = build_plan(
        initial,
        aligned,
        max_shard_size=_TASK_SIZE,
        vocab_policy=vocab_policy,
        extra_tensors=extra_tensors,
    )
    tensors = _measure(plan, address, progress or NullProgress())
    floats = {name: row for name, row in tensors.items() if row["num_elements"]}
    total = _join(floats.values())
    # Norm weights sit near one in any model: matrices alone tell kin from strangers.
    matrices = _join(row for row in floats.values() if row["num_dimensions"] > 1)
    total |= {"matrices": matrices}
    identical = tuple(name for name, row in floats.items() if row["identical"])
    result = Diagnosis(
        initial=plan.pair.initial.uri,
        aligned=plan.pair.aligned.uri,
        reasons=tuple(_reasons_against(total, floats, identical)),
        doubts=tuple(_doubts(plan.pair, total)),
        total=total,
        groups=_groups(floats),
        layers=_layers(floats),
        tensors=tensors,
        identical=identical,
        notes=(*plan.pair.notes, *_unmoved_notes(floats, identical)),
    )
    if strict:
        result.require_fit()
    return result


def _measure(plan: Plan, address: str | None, progress: Progress) -> dict[str, Row]:
    tasks = [shard_task(plan, shard, MEASURE, (), allow_nonfinite=True) for shard in plan.shards]
    bar = progress.start("Measuring the pair", plan.input_bytes, "B")
    try:
        reports, _ = run_tasks(tasks, address=address, advance=bar.advance)
    finally:
        bar.close()
    rows = {name: row for report in reports for name, row in report.statistics.items()}
    dimensions = {pair.name: len(pair.aligned.shape) for pair in plan.pair.tensors}
    for name, row in rows.items():
        row["num_dimensions"] = dimensions[name]
        row["group"] = module_group(name)
        row["stack"], row["layer"] = layer_position(name) or (None, None)
        row["relative_delta"] = _ratio(row["delta_norm"], row["initial_norm"])
    return rows


def _join(rows: Iterable[Row]) -> Row:
    rows = list(rows)
    initial, aligned, delta = (
        math.sqrt(sum((row[key] or 0.0) ** 2 for row in rows))
        for key in ("initial_norm", "aligned_norm", "delta_norm")
    )
    num_elements = sum(row["num_elements"] for row in rows)
    cosine = None
    if initial and aligned:
        cosine = 1.0 - (delta**2 - (initial - aligned) ** 2) / (2 * initial * aligned)
    rms = [(row["delta_norm"] or 0.0) / math.sqrt(row["num_elements"]) for row in rows]
    return {
        "num_tensors": len(rows),
        "num_elements": num_elements,
        "initial_norm": initial,
        "aligned_norm": aligned,
        "delta_norm": delta,
        "relative_delta": _ratio(delta, initial),
        "cosine": cosine,
        "mean_delta_norm": _mean([row["delta_norm"] or 0.0 for row in rows]),
        "mean_delta_rms": _mean(rms),
        "share_moved": _ratio(sum(row["num_moved"] for row in rows), num_elements),
        "num_nonfinite": sum(row["num_nonfinite"] for row in rows),
    }


def _groups(rows: dict[str, Row]) -> dict[str, Row]:
    found = {}
    for group in GROUPS:
        members = [row for row in rows.values() if row["group"] == group]
        if members:
            found[group] = _join(members)
    return found


def _layers(rows: dict[str, Row]) -> list[Row]:
    positions = {(row["stack"], row["layer"]) for row in rows.values() if row["stack"] is not None}
    found = []
    for stack, index in sorted(positions):
        members = [r for r in rows.values() if (r["stack"], r["layer"]) == (stack, index)]
        by_group = {
            group: _join([row for row in members if row["group"] == group])["relative_delta"]
            for group in GROUPS
            if any(row["group"] == group for row in members)
        }
        place = {"stack": stack, "layer": index}
        found.append({**place, **_join(members), "relative_delta_by_group": by_group})
    return found


def _reasons_against(total: Row, rows: dict[str, Row], identical: tuple[str, ...]) -> list[str]:
    reasons = []
    if total["num_nonfinite"]:
        names = [name for name, row in rows.items() if row["num_nonfinite"]]
        reasons.append(f"{len(names)} tensors hold NaN or infinite values, first {names[0]}")
        return reasons
    if len(identical) == len(rows):
        reasons.append("all weights are identical: there is nothing to extrapolate")
    relative, cosine = _kinship(total)
    if relative > UNRELATED_DELTA or cosine < UNRELATED_COSINE:
        reasons.append(
            f"the models look unrelated: relative delta of matrices {relative:.3g}, cosine "
            f"{cosine:.3g} (related ones: below {LARGE_DELTA}, near 1)"
        )
    return reasons


def _doubts(pair: Pair, total: Row) -> list[str]:
    doubts = []
    relative, cosine = _kinship(total)
    if LARGE_DELTA < relative <= UNRELATED_DELTA and cosine >= UNRELATED_COSINE:
        doubts.append(
            f"delta is large: relative delta of matrices {relative:.3g}; is initial the direct "
            "parent of aligned?"
        )
    elif total["mean_delta_rms"] > SFT_LIKE_RMS and total["num_elements"] > SMALL_MODEL:
        doubts.append(
            f"delta rms is {total['mean_delta_rms']:.2e}, nearer to the published supervised "
            "tuning of a 7B model (2.0e-4) than to its preference training (6.3e-6): check that "
            "initial is the direct parent of aligned"
        )
    difference = compare_tokenizers(pair.initial, pair.aligned)
    if difference is not None:
        doubts.append(f"the tokenizers differ in {difference.num_entries or 'unknown'} entries")
    return doubts


def _unmoved_notes(rows: dict[str, Row], identical: tuple[str, ...]) -> list[str]:
    """Tell what stays as it is. No doubt: adapters and frozen layers leave most tensors alone."""
    if not 0 < len(identical) < len(rows):
        return []
    return [
        f"{len(identical)} of {len(rows)} tensors are the same in both models (no part of an "
        f"adapter, frozen, or smaller steps than the dtype holds) and stay so: "
        f"{first_names(identical)}"
    ]


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _kinship(total: Row) -> tuple[float, float]:
    """Return (relative delta, cosine) of the matrices, of all tensors where there are none."""
    row = total["matrices"] if total["matrices"]["num_tensors"] else total
    relative = row["relative_delta"]
    return math.inf if relative is None else relative, row["cosine"] or 0.0
