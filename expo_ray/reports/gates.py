"""What a run says of its gates: what a candidate must not lose, and whether it did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from expo_ray.reports import wording

_RESULTS = {"no-worse": "no worse", "worse": "worse", "cannot-tell": "cannot be told"}


def gate_result(gate: Mapping[str, Any]) -> str:
    """Return what became of a gate; of what has no margin, that it is only reported."""
    return _RESULTS.get(str(gate["verdict"]), "reported")


def gate_sentences(selection: Mapping[str, Any]) -> list[str]:
    """Return a sentence for each gate, and for each set of prompts that is only reported."""
    return [_sentence(gate) for gate in selection.get("gates", ())]


def _sentence(gate: Mapping[str, Any]) -> str:
    name = f"{gate['name']}, alpha {wording.format_alpha(gate['alpha'])}"
    change = wording.signed(gate["difference"])
    text = f"{name}: {gate_result(gate)}; {change} ("
    text += (
        f"{wording.interval(gate['ci_low'], gate['ci_high'])}) on {gate['num_prompts']:,} prompts"
    )
    if gate["margin"] is not None:
        text += f", margin {gate['margin']:g}"
    if gate["verdict"] == "cannot-tell" and gate["num_needed"] is not None:
        needed = gate["num_needed"]
        is_more = needed > gate["num_prompts"]
        text += f"; about {needed:,} would tell" if is_more else "; an equal model would be told"
    unreadable = gate.get("candidate_unreadable")
    if unreadable:
        text += (
            f"; {unreadable:,} answers could not be read, {gate['aligned_unreadable']:,} of the "
            "aligned model"
        )
    return text
