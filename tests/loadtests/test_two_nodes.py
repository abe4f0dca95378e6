"""Clients keep off the replicas' node, on a real cluster of two nodes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_clients_run_where_no_replica_does(pico_pair: tuple[Path, Path], tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"prompt": "Hello."}\n{"prompt": "Good night."}\n')
    command = [sys.executable, "-m", "tests.loadtests.two_nodes"]
    done = subprocess.run(
        [*command, str(pico_pair[1]), str(prompts), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    for name, num_clients in (("everywhere", 2), ("labelled", 2), ("asked", 3)):
        clients = found[name]
        assert clients["node_ids"] == [found["other"]]
        assert (clients["beside_replicas"], clients["num_clients"]) == (False, num_clients)
    # Through the handle no address matters.
    assert found["direct"]["node_ids"] == [found["other"]]
