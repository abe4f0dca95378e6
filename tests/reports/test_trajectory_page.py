"""The page of a trajectory: the numbers of its file, and nothing in it becomes markup."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expo_ray.errors import ConfigError
from expo_ray.extrapolation.trajectories.diagnosis_file import DIAGNOSIS_NAME, write_diagnosis
from expo_ray.extrapolation.trajectories.judgement import judge_path
from expo_ray.reports import write_report
from tests.extrapolation.trajectories.paths import measured, synthetic_path
from tests.reports.page import Page

EVIL = "<script>alert(1)</script><b>$_x$"
STEPS = (0, 0.5, *range(10, 210, 10))


def written(folder: Path, kind: str = "noisy line", num_steps: int = len(STEPS)) -> dict[str, Any]:
    steps = STEPS[:num_steps]
    sums = measured(synthetic_path(kind, steps))
    places = [f"{EVIL}/step_{step}" for step in steps]
    found = judge_path(sums, steps, checkpoints=places, notes=[EVIL]).as_dict()
    write_diagnosis(folder, found)
    return found


def page_of(folder: Path) -> Page:
    page = Page(write_report(folder))
    assert page.unclosed == []
    assert not [i for i, count in page.ids.items() if count > 1]
    assert "script" not in page.tags
    return page


def test_the_page_holds_every_score(tmp_path: Path) -> None:
    found = written(tmp_path)
    page = page_of(tmp_path)
    assert found["verdict"]["sentence"] in page.text.replace("\N{MINUS SIGN}", "-")
    assert found["verdict"]["decision"] == "extrapolate"
    expected: dict[str, list[float]] = {}
    for score in found["scores"]:
        cells = expected.setdefault(score["forecast"], [])
        cells += [score[f"{which}_error"] for which in ("mean", "latest", "expected")]
    for name, cells in expected.items():
        reach = found["verdict"]["reach"].get(name)
        assert [*cells, *([reach] if reach else [])] in page.rows, name
    assert {p.name for p in (tmp_path / "figures").iterdir()} == {
        f"{name}.{kind}"
        for name in ("path", "coefficients", "error-by-horizon")
        for kind in ("svg", "png")
    }
    assert EVIL in page.text


def test_a_walk_is_kept_and_the_page_says_so(tmp_path: Path) -> None:
    written(tmp_path, "walk")
    assert "Keep the last checkpoint: no fit beats no change" in page_of(tmp_path).text


def test_without_back_tests_there_is_no_table_of_them(tmp_path: Path) -> None:
    written(tmp_path, num_steps=2)
    page = page_of(tmp_path)
    assert "nothing could be tested" in page.text
    assert "Back-test" not in page.text
    assert {p.stem for p in (tmp_path / "figures").iterdir()} == {"path", "coefficients"}


def test_the_same_file_gives_the_same_page(tmp_path: Path) -> None:
    written(tmp_path)
    first = write_report(tmp_path).read_bytes()
    assert write_report(tmp_path).read_bytes() == first


def test_another_form_is_refused(tmp_path: Path) -> None:
    found = written(tmp_path)
    del found["verdict"]["reach"]
    (tmp_path / DIAGNOSIS_NAME).write_text(json.dumps(found))
    with pytest.raises(ConfigError, match="not in the form"):
        write_report(tmp_path)
