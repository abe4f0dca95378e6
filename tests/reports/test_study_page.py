"""The page of a controlled experiment."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from expo_ray.reports import write_report
from expo_ray.reports.study_figure import study_figure
from expo_ray.reports.study_page import warned_sentence


def gain(mean: float, *, seeds: bool) -> dict[str, Any]:
    over_seeds = {"seeds_ci_low": mean - 0.3, "seeds_ci_high": mean + 0.3}
    none = dict.fromkeys(over_seeds)
    found = {"mean": mean, "ci_low": mean - 0.1, "ci_high": mean + 0.1}
    return found | (over_seeds if seeds else none)


def arm(name: str, *, seeds: bool, published: str = "") -> dict[str, Any]:
    means = {-0.5: -0.2, 0.0: 0.0, 1.0: 0.4, 5.0: -1.0}
    return {
        "name": name,
        "published": published,
        "is_alignment_step": True,
        "relative_delta": 0.0123,
        "best_alphas": [1.0, 5.0, 1.0],
        "before": 4.0,
        "after": 4.4,
        "gain": gain(0.4, seeds=seeds),
        "over_yardstick": gain(0.2, seeds=seeds),
        "tokens_before": 21.3,
        "tokens_after": 25.0,
        "worse_from": 5.0,
        "curve": [
            {
                "alpha": a,
                "mean": 4 + m,
                "gain": gain(m, seeds=seeds),
                "tokens": 20 + a,
                "cut_off": 0,
            }
            for a, m in means.items()
        ],
        "seeds": [
            {
                "seed": 2,
                "best_alphas": [1.0, 1.0],
                "gain": 0.4,
                "fit": False,
                "warnings": ["unrelated"],
            }
        ],
    }


def study(*, seeds: bool = True, others: int = 0, name: str = "10% <b>") -> dict[str, Any]:
    counts = {"num_pairs": 3, "num_warned": 0, "num_unfit": 0}
    return {
        "schema_version": 1,
        "name": "a-study",
        "title": "A title",
        "question": "Is it so?",
        "published": "It was so.",
        "limits": "Not elsewhere.",
        "yardstick": name,
        "settings": {"seeds": [2, 3, 4] if seeds else [2], "small": not seeds},
        "num_prompts": 300,
        "confidence": 0.95,
        "arms": [arm(name, seeds=seeds, published="alpha 8"), arm("100%", seeds=seeds)],
        "warned": {"alignment_steps": counts, "others": counts | {"num_pairs": others}},
        "shows": "It was so here.",
    }


def page_of(folder: Path, found: dict[str, Any]) -> str:
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
    cells = [re.sub(r"<.*?>", "", cell) for cell in re.findall(r"<t[hd].*?</t[hd]>", row[0])]
    assert cells[:6] == ["100%", "0.0123", "1, 5", "4.00", "4.40", "+0.40"]
    assert cells[6:8] == ["+0.30 to +0.50", "+0.10 to +0.70"]
    assert cells[-2:] == ["1 of 1", "n/a"]
    assert (tmp_path / "figures" / "truth-against-alpha.png").stat().st_size > 10_000


def test_too_few_seeds_are_called_partial(tmp_path: Path) -> None:
    page = page_of(tmp_path, study(seeds=False))
    assert "Partial: 1 seed," in page
    assert "over seeds</th>" not in page
    whole = page_of(tmp_path, study())
    assert "Partial" not in whole
    assert "over seeds</th>" in whole


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
