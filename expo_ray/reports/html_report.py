"""report.html: gathers facts, draws figures, fills the template."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from expo_ray.checkpoints import atomic_write_bytes, atomic_write_text
from expo_ray.checkpoints.storages.local_output import refuse_links, require_local
from expo_ray.reports import cautions, costs, deltas, examples, figures, provenance, wording
from expo_ray.reports.drawing import Drawing
from expo_ray.reports.first_order_figure import first_order_curve
from expo_ray.reports.gates import gate_result
from expo_ray.reports.load_figures import latency_curve
from expo_ray.reports.load_page import is_load_test, load_page, speed_rows
from expo_ray.reports.load_panels import ratio_forest
from expo_ray.reports.page_template import page_environment
from expo_ray.reports.pairing import gain_curve, prompt_means
from expo_ray.reports.parts import parts_page
from expo_ray.reports.proof import proof_page
from expo_ray.reports.run_files import RunFiles, in_our_form
from expo_ray.reports.sample_tables import reported_rows, sample_tables
from expo_ray.reports.study_page import is_study, study_page
from expo_ray.reports.throughput import Throughput, compare_throughput
from expo_ray.reports.trajectory_page import is_trajectory, trajectory_page
from expo_ray.reports.tries import step_back
from expo_ray.reports.truth import TruthVerdict, judge_by_truth

_OPTIONAL: Mapping[str, Any] = {
    **{"reason": "", "num_tuning": 0, "num_heldout": 0, "guards": ()},
    **{"first_order": None, "search": None, "unfit": (), "heldout_sequence": ()},
    "gates": (),
}

_UNKNOWN_SPREAD: Mapping[str, Any] = {"ci_low": None, "ci_high": None}


def write_report(run_dir: str | Path) -> Path:
    """Write report.html and figures/ from the files of a run directory or of a load test.

    The page needs nothing but itself: no network, no script, no other file. The same files give the
    same bytes.

    Args:
        run_dir: A run directory, of which every part but selection.json may be missing; or the
            output folder of a load test, a comparison, a scaling test, of
            `diagnose --trajectory`, or of a controlled experiment.

    Returns:
        The path of report.html.

    Raises:
        ConfigError: It is neither, a JSON file is malformed, or a link leads out of it.
        TableError: A Parquet file is malformed.

    Example:
        >>> expo_ray.write_report("run").name
        'report.html'
    """
    path = require_local(run_dir, where="RUN")
    refuse_links(path)
    if is_load_test(path):
        template, (page, drawings) = "load_report.html.j2", load_page(path)
    elif is_trajectory(path):
        with in_our_form(path):
            template, (page, drawings) = "trajectory.html.j2", trajectory_page(path)
    elif is_study(path):
        with in_our_form(path):
            template, (page, drawings) = "study.html.j2", study_page(path)
    else:
        run = RunFiles.read(path)
        with in_our_form(path):
            template, (page, drawings) = "report.html.j2", _page(run)
    with in_our_form(path):
        html = page_environment().get_template(template).render(page)
    folder = path / "figures"
    folder.mkdir(exist_ok=True)
    for drawing in drawings:
        atomic_write_text(folder / f"{drawing.name}.svg", drawing.svg)
        atomic_write_bytes(folder / f"{drawing.name}.png", drawing.png)
    target = path / "report.html"
    atomic_write_text(target, html)
    return target


def _page(run: RunFiles) -> tuple[dict[str, Any], list[Drawing]]:
    selection = run.selection
    decimals = wording.decimals_for(selection)
    alpha = _compared_alpha(run)
    truth = judge_by_truth(selection, run.truth)
    throughput = compare_throughput(run)
    drawings = _drawings(run, throughput)
    page: dict[str, Any] = {
        "title": run.resolved.get("recipe", {}).get("name") or run.path.resolve().name,
        "headline": wording.headline(selection),
        "sentence": _lede(selection),
        "selection": {**_OPTIONAL, **selection},
        "decimals": decimals,
        "interval": wording.interval_name(selection),
        "heldout": wording.heldout(selection) if wording.has_heldout(selection) else None,
        "alpha": alpha,
        "candidate": _candidate(selection, alpha),
        "rejected": selection["verdict"] != "extrapolate",
        "candidates": [
            {**c, "standing": wording.standing(selection, c)}
            for c in sorted(selection["candidates"], key=lambda c: float(c["alpha"]))
        ],
        "truth": truth,
        "truth_rows": _truth_rows(run, truth),
        "proof": proof_page(),
        **_guards(selection),
        "step_back": step_back(selection),
        "throughput": throughput,
        "speed_rows": speed_rows(throughput.series) if throughput else [],
        "cautions": cautions.cautions(run, truth=truth, throughput=throughput),
        "deltas": deltas.summarize(run.checkpoints),
        "facts": provenance.facts(run),
        "training_facts": provenance.training_facts(run),
        "inputs": provenance.input_files(run),
        "checkpoints": provenance.written_checkpoints(run),
        "steps": provenance.next_steps(run),
        "along": provenance.along(run),
        "costs": costs.count_costs(run),
        "search_sentence": costs.search_sentence(selection),
        "parts": parts_page(selection),
        "gate_result": gate_result,
        "sample_tables": sample_tables(selection),
        "reported_rows": reported_rows(selection),
        "first_order": wording.first_order(selection),
        "batching_spread": wording.batching_spread(selection),
        "recipe": run.recipe,
        "timings": run.timings,
        "figures": {drawing.name: drawing for drawing in drawings},
        **_side_by_side(run, alpha),
    }
    return page, drawings


def _lede(selection: Mapping[str, Any]) -> str:
    # The headline above it has already said the first words.
    sentence = wording.verdict_sentence(selection).removeprefix(f"{wording.headline(selection)}: ")
    return sentence[0].upper() + sentence[1:]


def _guards(selection: Mapping[str, Any]) -> dict[str, Any]:
    """Return the guards that fired, by the prompts that they fired on, and how many cannot tell."""
    guards = selection.get("guards", ())
    fired = {
        heading: [g for g in guards if g["fired"] and g.get("split", "tuning") == split]
        for split, heading in (("tuning", "On tuning prompts"), ("heldout", "On held-out prompts"))
    }
    return {
        "fired": {heading: found for heading, found in fired.items() if found},
        "num_untold": sum(g.get("state") == "cannot-tell" and not g["fired"] for g in guards),
        "checks": [{**_UNKNOWN_SPREAD, **g, "result": _guard_result(g)} for g in guards],
    }


def _guard_result(guard: Mapping[str, Any]) -> str:
    """Say what a check ended with; those of older versions have no state."""
    if guard.get("state") != "cannot-tell":
        return "fired" if guard["fired"] else "clear" if "state" in guard else "quiet"
    return "cannot be told: " + ("stopped" if guard["fired"] else "let pass")


def _compared_alpha(run: RunFiles) -> float | None:
    """Return the alpha that stands beside aligned: the chosen one, else the best rejected one."""
    if run.selection["verdict"] == "extrapolate":
        return float(run.selection["best_alpha"])
    return wording.rejected_alpha(run.selection)


def _candidate(selection: Mapping[str, Any], alpha: float | None) -> Mapping[str, Any] | None:
    return next((c for c in selection["candidates"] if c["alpha"] == alpha), None)


def _drawings(run: RunFiles, throughput: Throughput | None) -> list[Drawing]:
    selection = run.selection
    alphas = [c["alpha"] for c in selection["candidates"]]
    level = wording.confidence(selection)
    truth = gain_curve(run.truth, alphas=alphas, split="tuning", confidence=level)
    truth_mean = None
    if 0.0 in run.truth:
        aligned_truth = prompt_means(run.truth[0.0], split="tuning")["reward_mean"]
        truth_mean = pc.mean(aligned_truth).as_py()
    curves = {
        name: gain_curve(tables, alphas=alphas, split="tuning", confidence=level)
        for name, tables in run.guard_rewards.items()
    }
    guards = {name: gains for name, gains in curves.items() if gains}
    drawn = []
    if not selection.get("unfit"):
        drawn.append(figures.reward_curve(selection, truth, truth_mean))
        if guards:
            drawn.append(figures.guard_curves(selection, guards))
        drawn.append(figures.length_curve(selection))
    if selection.get("first_order"):
        drawn.append(first_order_curve(selection["first_order"]))
    if throughput is not None and throughput.plottable:
        drawn.append(latency_curve(throughput.plottable))
    if throughput is not None and any(point["num_pairs"] for point in throughput.paired):
        names = list(throughput.series)
        drawn.append(ratio_forest(throughput.paired, baseline=names[0], candidate=names[1]))
    heat = deltas.summarize(run.checkpoints)
    if heat is not None and heat.cells:
        drawn.append(figures.delta_map(heat.modules, heat.layers, heat.cells))
    return drawn


def _side_by_side(run: RunFiles, alpha: float | None) -> dict[str, Any]:
    scoring = run.scoring_rewards
    if alpha is None:
        return {"examples": [], "outcome": None}
    ahead = examples.differences(scoring, alpha, split="heldout")
    if not ahead.num_rows:
        ahead = examples.differences(scoring, alpha, split=None)
    chosen = examples.choose_examples(run.response_files, scoring, run.truth, alpha, ahead)
    outcome = examples.count_outcomes(ahead["difference"]) if ahead.num_rows else None
    return {"examples": chosen, "outcome": outcome}


def _truth_rows(run: RunFiles, truth: TruthVerdict | None) -> list[tuple[str, Any]]:
    if truth is None:
        return []
    rows = [("rejected" if not run.selection["best_alpha"] else "chosen", truth.judged)]
    if truth.best is not None and truth.best.alpha not in (truth.judged.alpha, 0.0):
        rows.append(("best by truth", truth.best))
    return rows
