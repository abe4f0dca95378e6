"""The code blocks of a Markdown page, and the commands inside them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if "_build" not in p.parts),
]
_SHELL = {"bash", "sh", "shell", "console", "zsh"}
_OPERATOR = re.compile(r"[;|&<>()]+")


@dataclass(frozen=True)
class Block:
    """One fenced block: of shell commands, or a file that the page tells to write."""

    page: Path
    line: int
    language: str
    classes: tuple[str, ...]
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_shell(self) -> bool:
        return self.language in _SHELL

    @property
    def needs(self) -> str | None:
        """What this machine lacks to run it (`needs-gpu`), None where it can."""
        return next((name for name in self.classes if name.startswith("needs-")), None)

    @property
    def is_service(self) -> bool:
        """Its first line serves until it is interrupted, or a service is running already."""
        return "service" in self.classes

    @property
    def file_name(self) -> str | None:
        """`# rules.yaml, ...` as the first line names the file that the rest of the block is."""
        match = re.match(r"# ([\w.-]+\.(?:yaml|json|jsonl))\b", self.text)
        return match[1] if match else None

    def lines(self) -> list[str]:
        """Shell lines, joined where one goes on in the next; comments alone are left out."""
        return list(_logical_lines(self.text))

    def commands(self) -> list[list[str]]:
        """Every simple command; lines are joined, comments, pipes and redirections left out."""
        return [command for line in self.lines() for command in _simple(line)]


def blocks_of(page: Path) -> list[Block]:
    return list(_blocks(page, page.read_text(encoding="utf-8"), 1))


def _blocks(page: Path, text: str, first_line: int) -> Iterator[Block]:
    comment = ""
    for token in MarkdownIt().parse(text):
        if token.type != "fence":
            comment = token.content if token.type == "html_block" else ""
            continue
        assert token.map is not None
        line = first_line + token.map[0]
        words = token.info.split()
        directive = words[0] if words and words[0].startswith("{") else None
        if directive not in (None, "{code-block}"):
            # A directive's content is Markdown again: notes, tabs.
            yield from _blocks(page, token.content, line + 1)
            continue
        options, content = _options(token.content) if directive else ({}, token.content)
        language = (words[1:] if directive else words)[:1]
        marked = re.match(r"<!-- ([\w-]+) -->", comment)
        classes = (*options.get("class", "").split(), *(marked.groups() if marked else ()))
        yield Block(page, line, language[0] if language else "", classes, content)


def _options(content: str) -> tuple[dict[str, str], str]:
    lines = content.splitlines(keepends=True)
    options = {}
    while lines and (match := re.match(r":([\w-]+):\s*(.*)", lines[0])):
        options[match[1]] = match[2].strip()
        del lines[0]
    return options, "".join(lines)


def _logical_lines(text: str) -> Iterator[str]:
    """Lines joined where a backslash or an open quotation goes on in the next."""
    held = ""
    for line in text.splitlines():
        held += line
        if held.endswith("\\"):
            held = held[:-1]
            continue
        try:
            words = shlex.split(held, comments=True)
        except ValueError:  # an open quotation
            held += "\n"
            continue
        if words:
            yield held
        held = ""
    assert not held, f"unfinished: {held}"


def _simple(line: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    command: list[str] = []
    words = iter(lexer)
    for word in words:
        if not _OPERATOR.fullmatch(word):
            command.append(word)
        elif set(word) & set("<>"):
            next(words)  # the file of a redirection
        else:
            yield command
            command = []
    if command:
        yield command
