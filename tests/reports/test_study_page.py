"""The page of a controlled experiment."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from expo_ray.reports import write_report
from expo_ray.reports.study_figure import study_figure
from expo_ray.reports.study_page import warned_sentence
from tests.reports.study_file import study


def page_of(folder: Path, found: dict[str, object]) -> str:
    (folder / "study.json").write_text(json.dumps(found))
    return write_report(folder).read_text()


def test_the_page_has_the_figure_the_table_and_both_sentences(tmp_path: Path) -> None:
    page = page_of(tmp_path, study())
    assert "It was so here." in page
    assert "Not elsewhere." in page
    assert "Published: It was so." in page
    assert page.count("<svg") == 1
    assert "10% &lt;b&gt;" in page
    assert "<b>" not in page
    row = re.search(r'<tr><th scope="row" class="text">100%.*?</tr>', page, re.DOTALL)
    assert row is not None
    cells = [re.sub(r"<.*?>", " ", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row[0])]
    found = [" ".join(cell.split()) for cell in cells]
    assert found[:5] == ["100%", "0.0123", "1, 5", "4.00", "4.40"]
    assert found[5] == "+0.40 +0.30 to +0.50 seeds +0.10 to +0.70"
    assert found[-2:] == ["1 of 1", "n/a"]
    assert (tmp_path / "figures" / "truth-against-alpha.png").stat().st_size > 10_000


def test_too_few_seeds_are_called_partial(tmp_path: Path) -> None:
    page = page_of(tmp_path, study(seeds=False))
    assert "Partial: 1 seed," in page
    assert "seeds +0.10 to" not in page
    whole = page_of(tmp_path, study())
    assert "Partial" not in whole
    assert "seeds +0.10 to" in whole


def test_what_diagnose_said_is_told_where_pairs_are_no_alignment_steps() -> None:
    assert warned_sentence(study()) is None
    told = warned_sentence(study(others=6))
    assert told is not None
    assert "0 of 6 pairs that are no alignment step" in told


def test_the_figure_draws_every_setting_and_tells_its_numbers() -> None:
    drawing = study_figure(study(name="10%"))
    assert "10%: -0.5: 3.80, 0: 4.00, 1: 4.40, 5: 3.00" in drawing.alt
    assert "100%" in drawing.svg


@pytest.mark.parametrize("missing", ["arms", "warned"])
def test_a_file_in_another_form_is_refused(tmp_path: Path, missing: str) -> None:
    found = study()
    del found[missing]
    with pytest.raises(Exception, match="not in the form"):
        page_of(tmp_path, found)
