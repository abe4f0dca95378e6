"""What the recorded lines of the selection's proof say, as Markdown; pure arithmetic on lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.proof_case import CONTROLS
from expo_ray.selection.bootstrap import adjust_p_values, bootstrap_mean

Line = Mapping[str, Any]
PICKS = {
    "chosen": "guarded selection",
    "by_reward": "guarded, by reward alone",
    "reward_only": "reward alone",
    "oracle": "oracle",
}
MIN_RECOVERED = 0.7
MIN_KEPT = 0.95
CONFIDENCE = 0.95
_NUM_RESAMPLES = 10_000

_PROMISED = {True: "yes", False: "**no**", None: "not tested"}


def recovered_share(runs: Sequence[Line], pick: str = "chosen") -> dict[str, float | None]:
    """Return the truth gained by a pick over that of the oracle, both summed over all runs.

    A ratio of sums and not a mean of ratios: where the oracle gains next to nothing, a ratio of
    one run means nothing. The interval resamples runs.
    """
    gains = np.array([[run["truth"][name]["gain"] for name in (pick, "oracle")] for run in runs])
    total, oracle = gains.sum(axis=0) if len(runs) else (0.0, 0.0)
    if oracle <= 0:
        return {"share": None, "ci_low": None, "ci_high": None}
    rng = np.random.default_rng(0)
    sums = gains[rng.integers(len(runs), size=(_NUM_RESAMPLES, len(runs)))].sum(axis=1)
    shares = sums[sums[:, 1] > 0]
    low, high = np.quantile(shares[:, 0] / shares[:, 1], [0.025, 0.975])
    return {"share": float(total / oracle), "ci_low": float(low), "ci_high": float(high)}


def significantly_worse(runs: Sequence[Line], pick: str) -> tuple[int, int]:
    """Count runs whose truth is significantly below alpha 0: as they are, and after Holm."""
    p_values = [run["truth"][pick]["p_value"] for run in runs]
    worse = [run["truth"][pick]["gain"] < 0 for run in runs]

    def count(values: Sequence[float]) -> int:
        return sum(w and p <= 1 - CONFIDENCE for w, p in zip(worse, values, strict=True))

    return count(p_values), count(adjust_p_values(p_values, "holm"))


def summarize(lines: Sequence[Line]) -> dict[str, Any]:
    """Return the figures of the proof and whether each promise is kept."""
    runs = [line for line in lines if line["kind"] == "run"]
    controls = [line for line in lines if line["kind"] != "run"]
    kept = {kind: _kept([c for c in controls if c["kind"] == kind]) for kind in CONTROLS}
    alone, diagnosed, _ = (sum(counts) for counts in zip(*kept.values(), strict=True))
    share = recovered_share(runs)
    races = [line["race"] for line in lines]
    worse = {pick: significantly_worse(runs, pick) for pick in PICKS}

    def enough(num_kept: int) -> bool | None:
        return num_kept >= MIN_KEPT * len(controls) if controls else None

    return {
        "digest": lines[0]["digest"],
        "num_runs": len(runs),
        "num_controls": len(controls),
        "recovered": share,
        "recovered_by_reward": recovered_share(runs, "by_reward"),
        "mean_gain": {
            pick: _mean_gain([run["truth"][pick]["gain"] for run in runs]) for pick in PICKS
        },
        "significantly_worse": {pick: list(counts) for pick, counts in worse.items()},
        "kept": kept,
        "racing": {
            "num_races": len(races),
            "same_choice": float(
                np.mean([line["race"]["chosen"] == line["by_reward"] for line in lines])
            ),
            "share": float(np.mean([race["share"] for race in races])),
            "tuning_share": float(np.mean([race["tuning_share"] for race in races])),
        },
        "promises": {
            "reward alone overshoots": worse["reward_only"][1] > 0,
            f"recovers {MIN_RECOVERED:.0%} of the oracle's gain": (
                share["share"] is not None and share["share"] >= MIN_RECOVERED
            ),
            "never significantly below alpha 0": bool(runs) and worse["chosen"][1] == 0,
            f"keeps aligned on {MIN_KEPT:.0%} of the negative controls": enough(diagnosed),
            "the same by the choice alone, with `--allow-unfit`": enough(alone),
        },
    }


def record(lines: Sequence[Line], *, num_expected: int) -> dict[str, Any]:
    """Return what the report of a laboratory shows of the proof, JSON-able."""
    found = summarize(lines)
    runs = sorted((line for line in lines if line["kind"] == "run"), key=lambda line: line["seed"])
    keys = ("seed", "fraction", *PICKS, "truth")
    return {
        **{k: found[k] for k in ("digest", "num_runs", "num_controls", "recovered", "promises")},
        "significantly_worse": found["significantly_worse"],
        "num_kept": sum(diagnosed for _, diagnosed, _ in found["kept"].values()),
        "num_kept_by_choice": sum(alone for alone, _, _ in found["kept"].values()),
        "num_cases": len(lines),
        "num_expected": num_expected,
        "commits": sorted({line["commit"] for line in lines}),
        "runs": [{key: run[key] for key in keys} for run in runs],
    }


def _kept(controls: Sequence[Line]) -> list[int]:
    """Count controls kept by the choice alone, kept by it or unfit to `diagnose`, and all."""
    kept = [line["verdict"] == "keep-aligned" for line in controls]
    unfit = [not line["fit"] for line in controls]
    return [sum(kept), sum(k or u for k, u in zip(kept, unfit, strict=True)), len(controls)]


def render(lines: Sequence[Line], *, num_expected: int | None = None) -> str:
    """Return the report: promises, figures, every run, every control that was not kept."""
    found = summarize(lines)
    runs = sorted((line for line in lines if line["kind"] == "run"), key=lambda line: line["seed"])
    parts = [
        "# The selection against the laboratory's hidden truth",
        "Written by `python -m benchmarks.selection_proof --summarize RESULTS --write`; the "
        f"settings (digest `{found['digest']}`) were frozen before these seeds were run, and every "
        "run is listed. Truth gains are over alpha 0, on requests that neither the selection nor "
        "the oracle saw, with 95% intervals that resample requests.",
        "The scoring reward model knows the answers of writers alone, as published ones do; the "
        "second judge has seen broken text and answers of the extrapolated pair too. With the "
        "laboratory's default scoring model, which has seen broken text, reward alone overshot in "
        "none of the four runs on the design seeds (0 and 1). On design seed 0 a step away from an "
        "unrelated model was really better (larger weights, surer answers): therefore `select` and "
        "`run` ask `diagnose` before they generate anything, and answer keep-aligned for a pair "
        "that it calls unfit. The controls are counted so, and by the choice alone.",
        "Every control has a seed of its own; those beyond the runs' seeds are judged by the "
        "reward models of a run. Requests are asked in all eight templates: 260 requests are 2,080 "
        f"prompts. Code: {', '.join(sorted({line['commit'] for line in lines}))}.",
    ]
    if num_expected is not None and num_expected != len(lines):
        parts.append(f"**Not finished: {len(lines)} of {num_expected} cases are recorded.**")
    parts.append(
        _table(
            ("promise", "kept"),
            [(name, _PROMISED[kept]) for name, kept in found["promises"].items()],
        )
    )
    if runs:
        parts += [_figures(found), _every_run(runs)]
    parts += [_controls(found, lines), _races(found["racing"])]
    return "\n\n".join(parts) + "\n"


def _figures(found: Mapping[str, Any]) -> str:
    share = found["recovered"]
    words = "The oracle gains nothing on average: there is no share to recover."
    if share["share"] is not None:
        words = (
            f"Over {found['num_runs']} runs the guarded selection recovers **{share['share']:.0%}**"
            f" of the oracle's truth gain (95% interval over runs {share['ci_low']:.0%} to "
            f"{share['ci_high']:.0%}); with candidates ordered by the scoring model alone it would "
            f"be {found['recovered_by_reward']['share']:.0%}."
        )
    rows = [
        (
            name,
            _interval(found["mean_gain"][pick]),
            *(str(count) for count in found["significantly_worse"][pick]),
        )
        for pick, name in PICKS.items()
    ]
    header = ("alpha picked by", "mean truth gain", "runs significantly worse", "after Holm")
    return f"{words}\n\n{_table(header, rows)}"


def _every_run(runs: Sequence[Line]) -> str:
    rows = [
        (
            str(run["seed"]),
            f"{run['fraction']:.0%}",
            *(cell for pick in PICKS for cell in (f"{run[pick]:g}", _interval(run["truth"][pick]))),
        )
        for run in runs
    ]
    header = ("seed", "data", *(c for name in PICKS.values() for c in (name, "truth gain")))
    words = "Every run: alpha and truth gain of each pick."
    words += f" `diagnose` calls {sum(run['fit'] for run in runs)} of these {len(runs)} pairs fit."
    return f"{words}\n\n{_table(header, rows)}"


def _controls(found: Mapping[str, Any], lines: Sequence[Line]) -> str:
    counts = "; ".join(
        f"{kind}: {diagnosed} of {total}, {alone} by the choice alone"
        for kind, (alone, diagnosed, total) in found["kept"].items()
    )
    lost = [
        (line["key"], f"{line['chosen']:g}", _interval(line["truth"]["chosen"]), _yes(line["fit"]))
        for line in lines
        if line["kind"] != "run" and line["verdict"] != "keep-aligned"
    ]
    words = f"Negative controls answered with keep-aligned: {counts}."
    header = ("not kept by the choice alone", "alpha", "truth gain", "fit")
    return f"{words}\n\n{_table(header, lost)}" if lost else words


def _races(found: Mapping[str, Any]) -> str:
    return (
        f"Racing, replayed on all {found['num_races']} cases, candidates ordered by the scoring "
        f"model alone: the verdict of the full grid in {found['same_choice']:.0%}, for "
        f"{found['share']:.0%} of its answers ({found['tuning_share']:.0%} of those to tuning "
        "prompts)."
    )


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _mean_gain(gains: Sequence[float]) -> dict[str, float | None]:
    estimate = bootstrap_mean(np.array(gains), num_resamples=_NUM_RESAMPLES, seed=0)
    low, high = estimate.interval(CONFIDENCE)
    return {"gain": estimate.mean, "ci_low": low, "ci_high": high}


def _interval(found: Mapping[str, float | None]) -> str:
    gain, low, high = (found[name] for name in ("gain", "ci_low", "ci_high"))
    if gain is None:
        return "-"
    return (
        f"{gain:+.2f}" if low is None or high is None else f"{gain:+.2f} [{low:+.2f}, {high:+.2f}]"
    )


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
