"""What to try next where no candidate was chosen, or a step back may help."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from expo_ray.extrapolation.planning.alpha import ALIGNED_ALPHA, checkpoint_name
from expo_ray.reports.run_files import RunFiles
from expo_ray.reports.wording import (
    decimals_for,
    format_alpha,
    interval,
    interval_name,
    signed,
)
from expo_ray.selection.gates import GATE_PREFIX, MAIN

Selection = Mapping[str, Any]
SMALLER = (0.25, 0.5, 0.75)
"""Of the smallest alpha that does not do: what to try below it."""
BACK = (-0.5, -0.25, -0.1)
"""Ways back to the initial model, which is -1."""
CUT_OFF_OFTEN = 0.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One thing to do next."""

    what: str
    command: str


def further_tries(run: RunFiles) -> list[Step]:
    """Return what to try in another run, the likeliest first."""
    return [
        *_longer_answers(run),
        *_step_back(run),
        *_more_for_a_gate(run),
        *_other_candidates(run),
    ]


def _other_candidates(run: RunFiles) -> Iterator[Step]:
    selection = run.selection
    tried = sorted(c["alpha"] for c in selection["candidates"] if c["alpha"] > 0)
    if selection["verdict"] == "extrapolate" or not tried:
        return
    stopped = stopped_heldout(selection)
    if stopped:
        lowest = min(stopped)
        yield _run_again(
            run,
            f"{_who_stopped(selection)} stopped alpha {_list(stopped)} on held-out prompts, where "
            "it gained: try smaller ones on other prompts, in a new directory (`select` again, or)",
            [alpha for alpha in tried if alpha < lowest] or _below(lowest),
        )
        return
    near = [c for c in selection["candidates"] if _is_near(c)]
    if near:
        best = max(near, key=lambda c: float(c["gain"]))["alpha"]
        yield _run_again(
            run,
            f"Alpha {format_alpha(best)} may gain, which so many prompts do not show: try it on "
            "more prompts, in a new directory (`select` again, or)",
            [best / 2, best],
        )
        return
    if step_back_answer(selection) != "yes":
        yield _run_again(
            run,
            "Nothing gained at the alphas tried: try smaller ones, in a new directory (`select` "
            "again, or)",
            _below(tried[0]),
        )


def stopped_heldout(selection: Selection) -> list[float]:
    """Return the alphas that gained on held-out prompts and were stopped there by guards."""
    sequence = selection.get("heldout_sequence") or ()
    return [one["alpha"] for one in sequence if one["outcome"] == "stopped"]


def _who_stopped(selection: Selection) -> str:
    sequence = selection.get("heldout_sequence") or ()
    names = [n for one in sequence for n in one["stopped_by"]]
    gates = [name for name in names if name.startswith(GATE_PREFIX)]
    if not gates:
        return "Guards"
    return "Gates" if len(gates) == len(names) else "Guards and gates"


def _is_near(candidate: Mapping[str, Any]) -> bool:
    """Tell whether a candidate may gain for all that is known, and nothing speaks against it."""
    high = candidate.get("gain_ci_high")
    return (
        candidate["alpha"] > 0
        and (candidate["gain"] or 0.0) > 0
        and high is not None
        and not candidate.get("stopped_by")
        and not candidate.get("dropped")
    )


def _below(alpha: float) -> list[float]:
    return [float(f"{alpha * share:.3g}") for share in SMALLER]


def _longer_answers(run: RunFiles) -> Iterator[Step]:
    """Where the aligned model is cut off already, a guard and a reward model see halves."""
    aligned = next((c for c in run.selection["candidates"] if c["alpha"] == 0), None)
    share = None if aligned is None else aligned["truncation_rate"]
    if share is None or share <= CUT_OFF_OFTEN:
        return
    sampling = run.resolved.get("recipe", {}).get("sampling", {})
    wanted = 2 * int(sampling.get("max_tokens") or 0) or "N"
    yield Step(
        what=f"{share:.0%} of the aligned model's own answers run into the token limit: allow "
        "longer ones, in a new directory (`select`: --max-tokens)",
        command=f"{_again(run)} --set sampling.max_tokens={wanted}",
    )


def _more_for_a_gate(run: RunFiles) -> Iterator[Step]:
    """Where a gate could not tell of the last candidate, ask how many prompts would."""
    stopped = stopped_heldout(run.selection)
    if run.selection["verdict"] == "extrapolate" or not stopped:
        return
    for gate in run.selection.get("gates") or ():
        if (gate["alpha"], gate["verdict"]) != (stopped[-1], "cannot-tell"):
            continue
        alpha = gate["alpha"]
        folder = run.path if gate["prompts"] == MAIN else run.path / "prompt_sets" / gate["prompts"]
        rewards = folder / "rewards" / gate["reward_model"]
        files = (rewards / f"{checkpoint_name(a)}.parquet" for a in (ALIGNED_ALPHA, alpha))
        tables = " ".join(shlex.quote(str(file)) for file in files)
        yield Step(
            what=f"So many prompts cannot tell whether alpha {format_alpha(alpha)} keeps the gate "
            f"{gate['name']}: how many would",
            command=f"expo-ray plan-prompts {tables} --margin {gate['margin']:g} "
            f"--confidence {gate['confidence']:g}",
        )


def _step_back(run: RunFiles) -> Iterator[Step]:
    if step_back_answer(run.selection) == "yes" and not _tried_back(run.selection):
        yield _run_again(run, "A step back may help: try", list(BACK))


def step_back_answer(selection: Selection) -> str | None:
    """Return whether the slope at alpha 0 speaks for a step back: yes, no, cannot-tell; or None."""
    found = selection.get("first_order")
    if not found or found["ci_low"] is None:
        return None
    if found["ci_high"] < 0:
        return "yes"
    return "no" if found["ci_low"] > 0 else "cannot-tell"


def step_back(selection: Selection) -> str | None:
    """Say whether a step back, towards the initial model, may help; None where nobody knows.

    Args:
        selection: The content of selection.json.
    """
    answer = step_back_answer(selection)
    if answer is None:
        return None
    found = selection["first_order"]
    bounds = interval(found["ci_low"], found["ci_high"], decimals_for(selection))
    slope = f"the slope at alpha 0 is {signed(found['slope'], decimals_for(selection))}"
    slope += f" ({interval_name(selection)} {bounds})"
    if answer == "no":
        return f"No: {slope}, so the reward falls towards the initial model."
    if answer == "cannot-tell":
        return f"It cannot be told from these prompts: {slope}."
    back = _tried_back(selection)
    if not back:
        return (
            f"It may: {slope}, so the reward rises towards the initial model, as it does where "
            f"alignment went too far. No alpha below 0 was tried; try {_list(BACK)}."
        )
    gains = ", ".join(
        f"{signed(c['gain'], decimals_for(selection))} at alpha {format_alpha(c['alpha'])}"
        for c in back
    )
    return f"It may: {slope}. Tried were {gains}; the table above says what is proven of them."


def _tried_back(selection: Selection) -> list[Mapping[str, Any]]:
    return [c for c in selection["candidates"] if c["alpha"] < 0]


def _run_again(run: RunFiles, what: str, alphas: Sequence[float]) -> Step:
    return Step(what=what, command=f"{_again(run)} --set 'extrapolation.alphas=[{_list(alphas)}]'")


def _again(run: RunFiles) -> str:
    return f"expo-ray run RECIPE --set output={shlex.quote(str(run.path))}-2"


def _list(alphas: Sequence[float]) -> str:
    return ", ".join(format_alpha(float(f"{alpha:.3g}")) for alpha in alphas)
