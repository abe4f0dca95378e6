"""The evidence section of a model card: written once, replaced afterwards, the rest untouched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expo_ray.errors import ConfigError, VerifyError
from expo_ray.extrapolation import extrapolate, verify
from expo_ray.reports import render_model_card, verdict_sentence
from tests.reports.run_directory import RunDirectory

CARD = "---\nbase_model:\n- a\n- b\n---\n\n# alpha-3\n\nWritten by extrapolation.\n"


def test_writes_the_evidence_and_keeps_the_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    selection = RunDirectory(tmp_path).write_selection(verdict="extrapolate", best_alpha=3.0)
    card = render_model_card(tmp_path, selection)
    text = card.read_text()
    assert text.startswith(CARD)
    assert "## Evidence" in text and verdict_sentence(selection) in text.replace("&lt;", "<")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + len(selection["candidates"])
    chosen = next(c for c in selection["candidates"] if c["alpha"] == 3.0)
    assert f"| 3 | {chosen['mean_reward']:.3f} | {chosen['gain']:+.3f} |" in text


def test_a_second_time_replaces_the_first(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    run = RunDirectory(tmp_path)
    render_model_card(tmp_path, run.write_selection(verdict="extrapolate", best_alpha=2.0))
    with (tmp_path / "README.md").open("a") as file:
        file.write("\nA note by hand.\n")
    selection = run.write_selection(verdict="extrapolate", best_alpha=3.0)
    once = render_model_card(tmp_path, selection).read_text()
    assert render_model_card(tmp_path, selection).read_text() == once
    assert once.count("## Evidence") == 1
    assert "alpha 3 raised" in once and "alpha 2 raised" not in once
    assert once.startswith(CARD) and once.endswith("\nA note by hand.\n")


def test_the_checkpoint_still_verifies(tmp_path: Path, pico_pair: tuple[Path, Path]) -> None:
    output = tmp_path / "alpha-3"
    extrapolate(*pico_pair, output, alpha=3.0, address="inline")
    before = json.loads((output / "expo_ray.json").read_text())
    selection = RunDirectory(tmp_path).write_selection(verdict="extrapolate", best_alpha=3.0)
    render_model_card(output, selection)
    verify(output, address="inline")
    after = json.loads((output / "expo_ray.json").read_text())
    changed = [a["name"] for a, b in zip(after["files"], before["files"], strict=True) if a != b]
    assert changed == ["README.md"]
    follow = {"files": None, "record_digest": None}
    assert {**after, **follow} == {**before, **follow}
    # An altered record gets no valid seal from a new card.
    altered = (output / "expo_ray.json").read_text().replace('"alpha": 3.0', '"alpha": 4.0')
    (output / "expo_ray.json").write_text(altered)
    render_model_card(output, selection)
    with pytest.raises(VerifyError, match="not what was written"):
        verify(output, address="inline")


def test_free_text_cannot_break_out(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    guard = {"name": "a|b\n\n# c <img>", "alpha": 5.0, "fired": True, "value": 1, "threshold": 0}
    selection = RunDirectory(tmp_path).write_selection(
        verdict="extrapolate", best_alpha=3.0, reason="x\n# y <script>", guards=[guard]
    )
    lines = render_model_card(tmp_path, selection).read_text().splitlines()
    assert [line for line in lines if line.startswith("#")] == ["# alpha-3", "## Evidence"]
    assert not [line for line in lines if "<script" in line or "<img" in line]
    assert all(line.count("|") == 8 for line in lines if line.startswith("|"))


def test_a_folder_without_a_card_is_refused(tmp_path: Path) -> None:
    selection = RunDirectory(tmp_path).write_selection(verdict="extrapolate", best_alpha=3.0)
    with pytest.raises(ConfigError, match="no model card"):
        render_model_card(tmp_path, selection)
