"""The README stays short: whoever reads it is tired."""

from __future__ import annotations

from tests.docs.blocks import ROOT

MAX_WORDS = 900


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= MAX_WORDS
