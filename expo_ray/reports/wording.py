"""Numbers and verdicts in words: the one sentence, the short table, the formats of both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from expo_ray.reports.run_files import in_our_form, read_selection

Selection = Mapping[str, Any]


def format_alpha(alpha: float) -> str:
    """Write an alpha as file names do: the shortest decimal."""
    return format(alpha + 0.0, ".9g")


def candidate_name(alpha: float) -> str:
    """Name a candidate in running text."""
    return "aligned (alpha 0)" if alpha == 0 else f"alpha {format_alpha(alpha)}"


def decimals_for(selection: Selection) -> int:
    """Return how many decimals the rewards of this run deserve: three digits of a usual gain."""
    confirmed = heldout(selection)
    bounds = [abs(confirmed[key]) for key in ("ci_low", "ci_high") if confirmed.get(key)]
    gains = [abs(c["gain"]) for c in selection["candidates"] if c["gain"]]
    scale = max(bounds) if bounds else median(gains) if gains else 0.0
    return 3 if scale == 0 else min(max(2 - math.floor(math.log10(scale)), 1), 6)


def signed(value: float | None, decimals: int = 3) -> str:
    """Format a difference with its sign; `n/a` where there is none."""
    return number(value, decimals, sign="+")


def number(value: float | None, decimals: int = 3, sign: str = "-") -> str:
    """Format a number with fixed decimals, never as negative zero; `n/a` where there is none."""
    if value is None or not math.isfinite(value):
        return "n/a"
    return format(round(value, decimals) + 0.0, f"{sign},.{decimals}f")


def interval(low: float | None, high: float | None, decimals: int = 3, *, sign: str = "+") -> str:
    """Format an interval as `+0.10 to +0.30`."""
    if low is None or high is None:
        return "n/a"
    return f"{number(low, decimals, sign)} to {number(high, decimals, sign)}"


def percent(share: float | None) -> str:
    """Format a share as a percentage."""
    if share is None:
        return "n/a"
    return f"{100 * share:.1f}%" if 0 < share < 0.0995 else f"{100 * share:.0f}%"


def p_value(value: float | None) -> str:
    """Format a p-value as `p = 0.012` or `p < 0.001`."""
    if value is None:
        return ""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def heldout(selection: Selection) -> Mapping[str, Any]:
    """Return the held-out comparison, empty where none was made."""
    return selection.get("heldout") or {}


def confidence(selection: Selection) -> float:
    """Return the confidence of the selection's intervals."""
    return float(selection.get("settings", {}).get("confidence", 0.95))


def interval_name(selection: Selection) -> str:
    """Name its intervals: `95% interval`."""
    return f"{100 * confidence(selection):g}% interval"


def has_heldout(selection: Selection) -> bool:
    """Tell whether a candidate other than aligned itself was measured on held-out prompts."""
    confirmed = heldout(selection)
    return bool(confirmed.get("alpha")) and confirmed.get("gain") is not None


def rejected_alpha(selection: Selection) -> float | None:
    """Return the candidate that came closest in a run that keeps the aligned model."""
    if selection["verdict"] == "extrapolate":
        return None
    named = selection.get("rejected_alpha") or heldout(selection).get("alpha")
    if named:
        return float(named)
    others = [c for c in selection["candidates"] if c["alpha"] != 0 and c["gain"] is not None]
    return max(others, key=lambda c: float(c["gain"]))["alpha"] if others else None


def headline(selection: Selection) -> str:
    """Return the verdict in a few words."""
    if selection["verdict"] == "extrapolate":
        return f"Extrapolate to alpha {format_alpha(selection['best_alpha'])}"
    return "Keep the aligned model"


def verdict_sentence(selection: Selection) -> str:
    """Say in one plain sentence what was gained, at which alpha and how sure one can be.

    Args:
        selection: The content of selection.json.
    """
    result = ""
    if has_heldout(selection):
        result = measured(selection, heldout(selection), over="the aligned model")
    if selection["verdict"] == "extrapolate":
        name = f"Extrapolating to alpha {format_alpha(selection['best_alpha'])}"
        if not result:
            return f"{name} was chosen on tuning prompts alone; no held-out prompts confirm it."
        return f"{name} {result}."
    if selection.get("unfit"):
        return f"Keep the aligned model: {selection['reason']}; nothing was generated."
    if not result:
        return "Keep the aligned model: no candidate earned a comparison on held-out prompts."
    name = candidate_name(heldout(selection)["alpha"])
    proven = (heldout(selection).get("ci_low") or 0.0) > 0
    because = "but did not pass every test" if proven else "which is not a proven gain"
    which = "best candidate"
    if len(selection.get("heldout_sequence") or ()) > 1:
        which = "last candidate tried"
    return f"Keep the aligned model: the {which}, {name}, {result}, {because}."


def change(low: float | None, mean: float, high: float | None, decimals: int) -> tuple[str, str]:
    """Return a change in words and its interval: `rose by 0.3` or `changed by -0.1`."""
    if low is not None and high is not None and low > 0:
        return f"rose by {number(mean, decimals)}", interval(low, high, decimals, sign="-")
    return f"changed by {signed(mean, decimals)}", interval(low, high, decimals)


def measured(selection: Selection, confirmed: Mapping[str, Any], *, over: str) -> str:
    """Say what a comparison on held-out prompts gave: `raised the mean reward by 0.3 (...)`.

    Args:
        selection: The content of selection.json.
        confirmed: Its comparison: gain, interval, p-value and number of pairs.
        over: What with.
    """
    words, bounds = change(
        confirmed["ci_low"], confirmed["gain"], confirmed["ci_high"], decimals_for(selection)
    )
    surety = f"{interval_name(selection)} {bounds}"
    if confirmed.get("p_value") is not None:
        surety += f", {p_value(confirmed['p_value'])}"
    verb = words.replace("rose by", "raised the mean reward by").replace(
        "changed by", "changed the mean reward by"
    )
    return f"{verb} ({surety}) over {over} on {confirmed['num_pairs']} held-out prompts"


def fired_guards(selection: Selection, alpha: float, split: str) -> list[str]:
    """Return the names of the guards that fired for a candidate on the prompts of a split."""
    fired = (
        g["name"]
        for g in selection.get("guards", ())
        if g["fired"] and g["alpha"] == alpha and g.get("split", "tuning") == split
    )
    return [name.replace("_", " ") for name in dict.fromkeys(fired)]


def dropped(why: str) -> str:
    """Say briefly when a race dropped a candidate, and why.

    Args:
        why: As the search puts it, such as `length-ratio on 50 prompts`.
    """
    when, is_race, _ = why.partition(" further answers")
    if is_race:
        return f"dropped {when}: hardly to be chosen any more"
    return f"dropped {why}" if why.startswith("after") else f"dropped: {why}"


def standing(selection: Selection, candidate: Mapping[str, Any]) -> str:
    """Say in a few words where a candidate stands: chosen, reference, or what speaks against it."""
    alpha = candidate["alpha"]
    if selection["verdict"] == "extrapolate" and alpha == selection["best_alpha"]:
        return "chosen"
    if alpha == 0:
        return "kept" if selection["verdict"] == "keep-aligned" else "reference"
    if candidate.get("dropped"):
        return dropped(candidate["dropped"])
    fired = fired_guards(selection, alpha, "tuning")
    if fired:
        return ", ".join(fired)
    if fired_guards(selection, alpha, "heldout"):
        return "stopped on held-out prompts"
    if candidate.get("collapsed"):
        return "collapsed"
    if candidate.get("gain_ci_low") is None:
        return "not measured"
    if candidate["gain_ci_high"] < 0:
        return "worse"
    if not candidate.get("eligible", candidate["gain_ci_low"] > 0):
        return "not proven"
    if selection["verdict"] == "keep-aligned" and heldout(selection).get("alpha") == alpha:
        return "not confirmed"
    return "eligible"


def batching_spread(selection: Selection) -> str | None:
    """Say how far batching alone moves a score; None where the selection does not say.

    Args:
        selection: The content of selection.json.
    """
    if "measurement_spread" not in selection:
        return None
    spread = selection["measurement_spread"]
    if spread is None:
        return (
            "How far batching alone moves a score was not measured: the self-test was switched off."
        )
    if spread == 0:
        return "Batching moved no score of the chats in the self-test of the reward model."
    return (
        f"Batching alone moves a score by up to {spread:.2g} (self-test of the reward model); "
        "gains up to that are not called gains."
    )


def first_order(selection: Selection) -> str | None:
    """Say how steep the reward is at alpha 0 and how far that slope predicts it; None if unknown.

    Args:
        selection: The content of selection.json.
    """
    found = selection.get("first_order")
    if not found:
        return None
    decimals = decimals_for(selection)
    bounds = interval(found["ci_low"], found["ci_high"], decimals)
    surety = f"{interval_name(selection)} {bounds}"
    slope = f"At alpha 0 the reward changes by {signed(found['slope'], decimals)} per unit of alpha"
    if found["ci_low"] is None or found["ci_low"] <= 0 <= found["ci_high"]:
        why = " that the smallest candidates answered before they were dropped"
        return (
            f"{slope} ({surety}): whether it rises at all along delta is not told on the "
            f"{found['num_prompts']} prompts{why if found.get('num_dropped') else ''}, so the "
            "argument of the method is neither supported nor refuted here."
        )
    return f"{slope} ({surety}). {_line_sentence(found)}"


def _line_sentence(found: Mapping[str, Any]) -> str:
    """Say where the line holds, where it fails, and where so many prompts cannot tell."""
    points, failed = found["points"], found["fails_at"]
    # Selections of older versions call a line that was not refuted one that holds.
    held = found["holds_until"] if "cannot_tell" in found else None
    below = [p["alpha"] for p in points if failed is None or p["alpha"] < failed]
    unknown = found.get("cannot_tell", below)
    told = []
    if held is not None:
        last = ", the largest that was tried" if held == points[-1]["alpha"] else ""
        told.append(f"holds, to a fifth, up to alpha {format_alpha(held)}{last}")
    if failed is not None:
        first = ", the smallest that was tried" if not below else ""
        told.append(f"fails at alpha {format_alpha(failed)}{first}")
    sentence = f"The straight line {' and '.join(told)}." if told else ""
    if unknown:
        alphas = ", ".join(map(format_alpha, unknown))
        sentence += (
            f" At alpha {alphas} it cannot be told from {found['num_prompts']} prompts whether "
            "it holds: the measured gain may lie within a fifth of it, or beyond."
        )
    return sentence.strip()


def summary_rows(run_dir: str | Path) -> tuple[list[str], list[list[str]]]:
    """Return the short final table of a run: column names and rows of plain text.

    Args:
        run_dir: The run directory; only its selection.json is read.

    Raises:
        ConfigError: selection.json is missing or malformed.
    """
    selection = read_selection(run_dir)
    with in_our_form(Path(run_dir)):
        return _summary(selection)


def _summary(selection: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    candidates = sorted(selection["candidates"], key=lambda c: float(c["alpha"]))
    # After a race each candidate has figures of other prompts; else their number is no news.
    is_raced = len({c["num_pairs"] for c in candidates}) > 1
    rows = [_summary_row(selection, candidate) for candidate in candidates]
    columns = list(rows[0]) if rows else []
    if not is_raced:
        columns.remove("prompts")
    return columns, [[row[name] for name in columns] for row in rows]


def _summary_row(selection: Mapping[str, Any], candidate: Mapping[str, Any]) -> dict[str, str]:
    decimals, is_aligned = decimals_for(selection), candidate["alpha"] == 0
    spread = interval(candidate["gain_ci_low"], candidate["gain_ci_high"], decimals)
    return {
        "alpha": format_alpha(candidate["alpha"]),
        "reward": number(candidate["mean_reward"], decimals),
        "gain": "" if is_aligned else signed(candidate["gain"], decimals),
        interval_name(selection): "" if is_aligned else spread,
        "prompts": str(candidate["num_pairs"]),
        "tokens": number(candidate["mean_tokens"], 1),
        "length": f"x{number(candidate['length_ratio'], 2)}",
        "cut off": percent(candidate["truncation_rate"]),
        "standing": standing(selection, candidate),
    }


def who_answered(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names under which a load test was answered, each with its weights, where told.

    Args:
        points: Of a summary.json.
    """
    told = [who for point in points for who in point.get("answered_by") or ()]
    return sorted({f"{who['model']} {who['system_fingerprint'] or ''}".strip() for who in told})
