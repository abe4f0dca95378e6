"""All results of a pair on one page, and what may not stand on one line."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from expo_ray.cli.main import app
from expo_ray.errors import ConfigError, TableError
from expo_ray.reports.pair_page import compare_pair
from tests.pair_folders import write_pair_folders


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    return write_pair_folders(tmp_path)


def change(file: Path, **fields: Any) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **fields}))


def test_every_result_stands_on_its_line(folders: tuple[Path, Path]) -> None:
    found = compare_pair(*folders)
    rows = {(row["benchmark"], row["score"]): row for row in found["rows"]}
    win_rate = rows["alpaca-eval", "win_rate"]
    assert (win_rate["before"], win_rate["after"]) == (10, 25)
    # Standard errors 1 and 2: the change has that of sqrt(5).
    assert win_rate["ci_low"] == pytest.approx(15 - 1.959964 * 5**0.5)
    assert win_rate["verdict"] == "rises"
    assert rows["alpaca-eval", "avg_length"]["ci_low"] is None
    average = rows["mt-bench", "average"]
    assert average["ci_high"] == pytest.approx(0.5 + (0.4**2 + 0.3**2) ** 0.5)
    assert average["verdict"] == "cannot-tell"
    task = rows["lm-evaluation-harness", "GSM8K, exact_match,strict-match (5 shots)"]
    assert (task["before"], task["change"]) == (pytest.approx(67), pytest.approx(-7))
    assert task["verdict"] == "falls"
    speed = rows["load test", "output_throughput, 4 in flight"]
    assert (speed["before"], speed["after"]) == (100, 98)
    assert found["settings"]["alpaca-eval"]["judge"] == "annotator by big"
    assert found["before"]["weights_digest"] == "blake3:dpo"
    assert ("alpaca-eval", "length_controlled_win_rate") not in rows


def test_pages_say_who_and_how(folders: tuple[Path, Path], tmp_path: Path) -> None:
    card = tmp_path / "checkpoint"
    card.mkdir()
    (card / "README.md").write_text("# expo\n")
    pages = [tmp_path / f"pair{suffix}" for suffix in (".html", ".md", ".csv")]
    for _ in range(2):  # a second time takes the place of the first
        compare_pair(*folders, output=pages, card=card)
    html, markdown, table = (page.read_text() for page in pages)
    for text in (html, markdown):
        assert "annotator by big" in text
        assert "blake3:expo" in text
    assert "<script" not in html.replace("&lt;script", "")
    assert "&lt;script" in html  # a model's name is text
    rows = list(csv.DictReader(table.splitlines()))
    assert rows[0]["score"] == "win_rate"
    assert float(rows[0]["change"]) == 15
    assert rows[0]["after_weights_digest"] == "blake3:expo"
    text = (card / "README.md").read_text()
    assert text.startswith("# expo\n")
    assert text.count("## Results") == 1


@pytest.mark.parametrize(
    ("file", "fields", "message"),
    [
        ("alpaca-eval.json", {"judge": "another"}, "different settings"),
        ("alpaca-eval.json", {"sampling": "{}"}, "different settings"),
        ("alpaca-eval.json", {"chat_template": "sha256:other"}, "different settings"),
        ("alpaca-eval.json", {"n_total": 804}, "different settings"),
        ("mt-bench.json", {"judge_prompts": "other"}, "different settings"),
        ("mt-bench.json", {"weights_digest": "blake3:third"}, "several models"),
        ("mt-bench.json", {"error": {"kind": "TableError", "message": "no"}}, "that failed"),
        ("mt-bench.json", {"benchmark": "alpaca-eval"}, "there twice"),
        ("harness/gsm8k.json", {"expo_ray": {"limit": 10}}, ""),
    ],
)
def test_unlike_results_are_refused(
    folders: tuple[Path, Path], file: str, fields: dict[str, Any], message: str
) -> None:
    change(folders[1] / file, **fields)
    if not message:  # known on one side alone: said, not refused
        notes = compare_pair(*folders)["notes"]
        assert "lm-evaluation-harness: one side alone says its limit" in notes
        return
    with pytest.raises(TableError, match=message):
        compare_pair(*folders)


def test_what_is_no_result_is_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (folders[0] / "annotations.json").write_text("[]")
    (folders[1] / "mt-bench.json").unlink()
    notes = compare_pair(*folders)["notes"]
    assert any("annotations.json" in note for note in notes)
    assert "mt-bench was measured of one model alone" in notes
    with pytest.raises(TableError, match="same weights"):
        compare_pair(folders[0], folders[0])
    with pytest.raises(TableError, match="no such folder"):
        compare_pair(folders[0], tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TableError, match="holds no results"):
        compare_pair(folders[0], tmp_path / "empty")
    with pytest.raises(ConfigError, match="does not tell its format"):
        compare_pair(*folders, output=[tmp_path / "pair.pdf"])


def test_the_command_prints_the_table(folders: tuple[Path, Path]) -> None:
    result = CliRunner().invoke(app, ["evaluate", "pair", *map(str, folders)])
    assert result.exit_code == 0, result.output
    assert "win rate, %" in result.stdout
    assert "rises" in result.stdout
