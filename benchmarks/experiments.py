"""The paper's controlled experiments, where the truth is known: every study's table, written down.

    python -m benchmarks.experiments [NAME ...] --seeds 2,3,4 --num-prompts 150 [--write]

Runs what `expo-ray lab NAME` runs, each study after the other; what is finished is kept in
`--cache`, so that more seeds add to it. `--write` puts each page and its figure into
`results/experiments/`.

Needs: two CPU cores, and mergekit for `baselines`. Takes: about 15 minutes a seed for all studies.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expo_ray.lab.studies.records import STUDIES
from expo_ray.lab.studies.running import cells_of, run_study
from expo_ray.lab.studies.study import StudySettings, parse_seeds
from expo_ray.lab.studies.summary import alpha_range, summarize
from expo_ray.reports.study_figure import study_figure
from expo_ray.reports.study_page import warned_sentence

RESULTS = Path(__file__).resolve().parent / "results" / "experiments"


def markdown(found: Mapping[str, Any], seconds: float) -> str:
    """Return a study's result as a page of Markdown."""
    settings = found["settings"]
    seeds = ",".join(map(str, settings["seeds"]))
    flags = f"--num-prompts {found['num_prompts']}{' --small' if settings['small'] else ''}"
    lines = [
        f"# {found['title']}",
        "",
        f"Written by `python -m benchmarks.experiments {found['name']} --seeds {seeds} {flags} "
        f"--write`. Training its models took {seconds / 60:.0f} minutes of CPU (models that "
        "studies share are counted in each).",
        "",
        f"{found['question']} {found['shows']}",
        "",
        "| setting | relative delta | alpha chosen | aligned | at alpha | gain, over prompts | "
        f"over seeds | over {found['yardstick']} as aligned | worse from | tokens | warned | "
        "paper |",
        f"|---|{'---:|' * 10}---|",
        *(_row(arm) for arm in found["arms"]),
        "",
        "Truth at each alpha, mean over seeds and prompts:",
        "",
        *_curves(found["arms"]),
        "",
        f"What it does not show: {found['limits'][0].lower()}{found['limits'][1:]}",
    ]
    if len(settings["seeds"]) < 3:
        many = len(settings["seeds"])
        told = f"{many} seed{'s' if many > 1 else ''}"
        lines += ["", f"**Partial**: {told}; no interval over seeds."]
    warned = warned_sentence(found)
    return "\n".join(lines + (["", warned] if warned else [])) + "\n"


def _row(arm: Mapping[str, Any]) -> str:
    gain, over = arm["gain"], arm["over_yardstick"]
    cells = [
        arm["name"],
        f"{arm['relative_delta']:.4f}",
        alpha_range(arm["best_alphas"]),
        f"{arm['before']:.2f}",
        f"{arm['after']:.2f}",
        f"{gain['mean']:+.2f} [{gain['ci_low']:+.2f}, {gain['ci_high']:+.2f}]",
        "-"
        if gain["seeds_ci_low"] is None
        else f"[{gain['seeds_ci_low']:+.2f}, {gain['seeds_ci_high']:+.2f}]",
        f"{over['mean']:+.2f} [{over['ci_low']:+.2f}, {over['ci_high']:+.2f}]",
        "never" if arm["worse_from"] is None else f"{arm['worse_from']:g}",
        f"{arm['tokens_before']:.0f} to {arm['tokens_after']:.0f}",
        f"{sum(bool(seed['warnings']) for seed in arm['seeds'])} of {len(arm['seeds'])}",
        arm["published"] or "-",
    ]
    return f"| {' | '.join(cells)} |"


def _curves(arms: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the table of the curves; all settings of a study have its alphas."""
    alphas = [f"{point['alpha']:g}" for point in arms[0]["curve"]]
    rows = []
    for arm in arms:
        means = (f"{point['mean']:.2f}" for point in arm["curve"])
        rows.append(f"| {arm['name']} | {' | '.join(means)} |")
    return [f"| setting | {' | '.join(alphas)} |", f"|---|{'---:|' * len(alphas)}", *rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*", default=list(STUDIES), metavar="NAME")
    parser.add_argument("--seeds", type=parse_seeds, default=(2, 3, 4))
    parser.add_argument("--num-prompts", type=int, default=300)
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--cache", default="runs/studies")
    parser.add_argument("--mergekit", default="mergekit-yaml")
    parser.add_argument("--address", help="Ray cluster; none means a Ray of its own")
    parser.add_argument("--write", action="store_true", help="write results/experiments/NAME.md")
    given = vars(parser.parse_args())
    names, address, write = given.pop("names"), given.pop("address"), given.pop("write")
    settings = StudySettings(**given)
    for name in names:
        study = STUDIES[name]
        run_study(study, settings, address=address)
        cells = cells_of(study, settings)
        folders = {folder for cell in cells for folder in (cell.initial, cell.aligned)}
        facts = [json.loads((folder / "training.json").read_text()) for folder in folders]
        seconds = sum(each["cpu_seconds"] for each in facts)
        found = summarize(study, settings, cells)
        text = markdown(found, seconds)
        print(text, flush=True)
        if write:
            RESULTS.mkdir(exist_ok=True)
            figure = f"![Truth and length against alpha]({name}.svg)\n"
            (RESULTS / f"{name}.md").write_text(f"{text}\n{figure}")
            (RESULTS / f"{name}.svg").write_text(study_figure(found).svg)


if __name__ == "__main__":
    main()
