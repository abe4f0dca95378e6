"""Imports beside other work."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from expo_ray.lazy import imported_beside

MODULE = "imported_beside_of_a_test"


def test_a_module_is_imported_beside_other_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import threading\nthread = threading.current_thread().name\n"
    (tmp_path / f"{MODULE}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with imported_beside(MODULE):
        pass
    assert sys.modules.pop(MODULE).thread != threading.current_thread().name


def test_what_cannot_be_imported_is_met_where_it_is_needed() -> None:
    with imported_beside(MODULE):
        pass
    assert MODULE not in sys.modules
