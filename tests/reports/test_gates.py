from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expo_ray.reports import gate_sentences, write_report
from tests.reports.run_directory import RunDirectory

GATE: dict[str, Any] = {
    "name": "gsm", "prompts": "gsm", "reward_model": "0-check-number", "alpha": 0.3,
    "margin": 0.02, "aligned": 0.6, "candidate": 0.59, "difference": -0.01, "ci_low": -0.031,
    "ci_high": 0.011, "num_prompts": 1319, "num_missing": 0, "num_needed": 2400,
    "verdict": "cannot-tell", "reason": "",
}  # fmt: skip


def test_gates_stand_in_the_report_and_on_the_terminal(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "run").write_all()
    file = tmp_path / "run" / "selection.json"
    selection = json.loads(file.read_text())
    assert gate_sentences(selection) == []
    enough = gate_sentences({"gates": [{**GATE, "num_needed": 1000}]})
    assert enough[0].endswith("margin 0.02; an equal model would be told")
    unread = {**GATE, "candidate_unreadable": 40, "aligned_unreadable": 2}
    assert gate_sentences({"gates": [unread]})[0].endswith(
        "40 answers could not be read, 2 of the aligned model"
    )
    reported = {**GATE, "name": "code <b>", "margin": None, "num_needed": None, "verdict": None}
    selection["gates"] = [GATE, reported]
    file.write_text(json.dumps(selection))
    first, second = gate_sentences(selection)
    assert first == (
        "gsm, alpha 0.3: cannot be told; -0.010 (-0.031 to +0.011) on 1,319 prompts, margin 0.02; "
        "about 2,400 would tell"
    )
    assert second.startswith("code <b>, alpha 0.3: reported; -0.010")
    html = write_report(tmp_path / "run").read_text("utf-8")
    assert "What must not be lost" in html
    assert "cannot be told" in html and "code &lt;b&gt;" in html
