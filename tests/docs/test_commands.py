"""Every command of the documentation parses; every block that can run here is run.

A shell block is run as it stands, in a folder with ./sft, ./dpo, ./rm and p.jsonl, after the blocks
before it on the same page. One that cannot run here says why by a class, `needs-gpu` for instance
(in the README, where GitHub would show the class as text, by a comment before it).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main
from typer.core import TyperGroup

from expo_ray.cli.main import main
from expo_ray.cli.tree import app
from tests.docs.blocks import PAGES, ROOT, Block, blocks_of
from tests.docs.workbench import make_workbench

NEEDS = {
    "needs-bucket": "S3 or Google storage with credentials",
    "needs-checkout": "a fresh clone: it installs or tests the project",
    "needs-cluster": "a Ray cluster, Kubernetes, Slurm or a cloud",
    "needs-gpu": "a GPU",
    "needs-hub": "the Hub",
    "needs-service": "a running service",
}
# Commands that serve nothing: they share the session's Ray and take about a second each.
QUICK = {"extrapolate", "verify", "inspect", "diagnose"}

TREE: Any = typer.main.get_command(app)
BLOCKS = [block for page in PAGES for block in blocks_of(page)]
SHELL = [block for block in BLOCKS if block.is_shell]


def _is_quick(block: Block) -> bool:
    operators = set("|<>&$`") & set(block.text)
    return not operators and all(
        command[0] == "expo-ray" and ({"--help", "--version"} | QUICK) & set(command[1:])
        for command in block.commands()
    )


def _pages(*, quick: bool) -> list[object]:
    pages = {b.page for b in SHELL if not b.needs and (_is_quick(b) or not quick)}
    return [pytest.param(p, id=str(p.relative_to(ROOT))) for p in PAGES if p in pages]


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_a_block_that_is_not_run_says_why(block: Block) -> None:
    assert block.language == "bash", "one name for shell blocks, so that none is overlooked"
    assert set(block.classes) <= set(NEEDS), f"known reasons: {NEEDS}"


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_parse(block: Block) -> None:
    """Commands and flags exist, values have their types; nothing is called."""
    for command in block.commands():
        if command[0] == "expo-ray":
            _parse(command[1:])


def _parse(arguments: list[str]) -> None:
    command = TREE
    try:
        context = command.make_context("expo-ray", list(arguments) or ["--help"])
        while isinstance(context.command, TyperGroup):
            group, rest = context.command, [*context._protected_args, *context.args]
            name, command, rest = group.resolve_command(context, rest)
            assert command is not None
            context = command.make_context(name, rest, parent=context)
    except typer.Exit as end:
        assert end.exit_code == 0


@pytest.mark.parametrize("page", _pages(quick=True))
def test_quick_blocks_run(
    page: Path, tmp_path: Path, ray_cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(make_workbench(tmp_path))
    for block in blocks_of(page):
        if block.file_name is not None:
            Path(block.file_name).write_text(block.text)
        elif block.is_shell and not block.needs and _is_quick(block):
            for command in block.commands():
                with pytest.raises(SystemExit) as end:
                    main(command[1:])
                assert end.value.code in (0, None), f"{block}: {command}"


@pytest.mark.slow
@pytest.mark.parametrize("page", _pages(quick=False))
def test_all_blocks_run(page: Path, tmp_path: Path) -> None:
    """Each block in a shell of its own, each command with the Ray that it starts."""
    folder = make_workbench(tmp_path)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    }
    for block in blocks_of(page):
        if block.file_name is not None:
            (folder / block.file_name).write_text(block.text)
        elif block.is_shell and not block.needs:
            result = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.text],
                cwd=folder,
                env=environment,
                capture_output=True,
                text=True,
            )
            assert result.returncode == 0, f"{block}\n{result.stdout}\n{result.stderr}"
