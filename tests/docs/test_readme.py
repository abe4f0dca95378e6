"""The README stays short, because whoever reads it is tired, and what it points to exists."""

from __future__ import annotations

import re

from tests.docs.blocks import ROOT

MAX_WORDS = 900
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= MAX_WORDS


def test_what_the_readme_points_to_exists() -> None:
    """The site's own links are held by its build."""
    links = re.findall(r"\]\((?!https?://)([^)#]+)", README)
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).is_file()] == []
