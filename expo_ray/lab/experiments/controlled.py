"""The records of the controlled experiments: one command for each study."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from expo_ray.checkpoints import atomic_write_json
from expo_ray.checkpoints.storages.local_output import require_local
from expo_ray.lab.experiments.kind import Experiment, Where
from expo_ray.lab.studies.records import STUDIES
from expo_ray.lab.studies.study import STUDY_NAME, Study, StudySettings


def _run(study: Study, settings: StudySettings, where: Where) -> Mapping[str, Any]:
    from expo_ray.lab.studies.running import run_study
    from expo_ray.lab.studies.summary import alpha_range, summarize

    output = require_local(where.output, where="output")
    cells = run_study(study, settings, address=where.address, progress=where.progress)
    found = summarize(study, settings, cells)
    output.mkdir(parents=True, exist_ok=True)
    atomic_write_json(output / STUDY_NAME, found)
    return {
        "study": study.name,
        "shows": found["shows"],
        "arms": [
            {
                "setting": arm["name"],
                "alpha": alpha_range(arm["best_alphas"]),
                "aligned": arm["before"],
                "extrapolated": arm["after"],
                "gain": arm["gain"]["mean"],
                "ci_low": arm["gain"]["ci_low"],
                "ci_high": arm["gain"]["ci_high"],
            }
            for arm in found["arms"]
        ],
    }


def _record(study: Study) -> Experiment:
    return Experiment(
        name=study.name,
        help=f"""{study.title}.

    {study.question} Every setting and seed gives a pair of tiny models, and the truth of its
    answers is measured against alpha: some minutes a seed on one core. Writes study.json, a page
    and its figure; models and curves are kept in --cache, and shared with the other studies.

    Example: expo-ray lab {study.name} --seeds 2,3,4 --output runs/{study.name}
    """,
        settings=StudySettings,
        run=partial(_run, study),
        has_page=True,
    )


CONTROLLED = tuple(_record(study) for study in STUDIES.values())
