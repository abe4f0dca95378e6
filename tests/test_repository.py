"""What stands around the code: workflows, hooks, templates."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").iterdir())
ISSUES = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").iterdir())
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_what_the_makefile_does_with_the_least_rights(path: Path) -> None:
    workflow = read(path)
    assert workflow["permissions"] == {"contents": "read"}
    for job in workflow["jobs"].values():
        assert job["timeout-minutes"] <= 90
        assert "permissions" not in job
        for step in job["steps"]:
            if "uses" in step:
                assert re.fullmatch(r"actions/[a-z-]+@v\d+", step["uses"])
            else:
                target = re.fullmatch(r"make ([a-z-]+)", step["run"])
                assert target is not None
                assert target[1] in TARGETS
    assert {"lint", "tests", "docs", "wheel"} <= workflow["jobs"].keys()


@pytest.mark.parametrize("path", ISSUES, ids=lambda path: path.name)
def test_issue_templates_have_what_a_form_needs(path: Path) -> None:
    form = read(path)
    if path.name == "config.yml":
        assert form == {"blank_issues_enabled": False}
        return
    assert form["name"]
    assert form["description"]
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)


@pytest.mark.parametrize(
    ("message", "refused_by"),
    [
        ("A subject\n\nThe reason.\n", None),
        ("A subject\n\nThe reason.\n\n# Please enter the commit message\n", None),
        ("x" * 72 + "\n\nThe reason.\n", None),
        ("x" * 73 + "\n\nThe reason.\n", "subject"),
        ("A subject alone\n", "reason"),
        ("A subject alone\n\n# Please enter the commit message\n# a comment\n", "reason"),
        ("A subject\nthat goes on\n\nThe reason.\n", "reason"),
    ],
)
def test_the_hook_wants_a_short_subject_and_a_reason(message: str, refused_by: str | None) -> None:
    hooks = read(ROOT / ".pre-commit-config.yaml")["repos"][0]["hooks"]
    of_messages = {hook["id"]: hook for hook in hooks if hook.get("stages") == ["commit-msg"]}
    assert all(hook["args"] == ["--multiline"] for hook in of_messages.values())
    # As pre-commit's pygrep searches a whole file.
    flags = re.MULTILINE | re.DOTALL
    refusing = [
        name for name, hook in of_messages.items() if re.search(hook["entry"], message, flags)
    ]
    assert refusing == ([refused_by] if refused_by else [])
