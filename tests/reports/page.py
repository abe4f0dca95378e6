"""Reads a report the way a browser does: elements, attributes, text, exact numbers."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Everything a test asks about a page."""

    def __init__(self, path: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: Counter[str] = Counter()
        self.rows: list[list[float]] = []
        """The exact values of the `data` elements, by table row."""
        self.unclosed: list[str] = []
        self._texts: list[str] = []
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        if tag not in VOID:
            self.unclosed.append(tag)
        if tag == "tr":
            self.rows.append([])
        for name, value in attrs:
            self.attributes.append((tag, name, value or ""))
            if name == "id":
                self.ids[value or ""] += 1
            if tag == "data" and name == "value" and self.rows:
                self.rows[-1].append(float(value or "nan"))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.unclosed and self.unclosed[-1] == tag, f"</{tag}> closes {self.unclosed[-1:]}"
        self.unclosed.pop()

    def handle_data(self, data: str) -> None:
        if not self.unclosed or self.unclosed[-1] != "style":
            self._texts.append(data)

    @property
    def text(self) -> str:
        """What a reader sees, minus signs as hyphens."""
        joined = " ".join(self._texts).replace("\N{MINUS SIGN}", "-")
        return re.sub(r"\s+", " ", joined.replace("\N{NO-BREAK SPACE}", " "))
