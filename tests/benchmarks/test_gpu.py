"""The benchmark of a GPU machine, tried on the CPU from end to end."""

from __future__ import annotations

import sys

import pytest

from benchmarks import gpu


def test_all_of_it_on_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = "--device cpu --layers 2 --hidden 256 --check-size tiny --tokens 3 --repeats 1"
    monkeypatch.setattr(sys, "argv", ["gpu", *flags.split()])
    assert gpu.main() == 0
    told = capsys.readouterr().out
    assert "PASS: memory held what was written, 3 times" in told
    assert "PASS: at most 3 times the CPU's" in told
    assert told.count("transformers alone") == len(gpu.NUM_ROWS)


def test_other_bytes_in_memory_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.device_checks.memory_digest", lambda *_: "blake3:other")
    flags = "--device cpu --layers 1 --hidden 64 --check-size tiny --repeats 1"
    monkeypatch.setattr(sys, "argv", ["gpu", *flags.split()])
    with pytest.raises(SystemExit, match="FAIL: load the written checkpoint"):
        gpu.main()


def test_what_is_not_installed_is_told_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu.MODULES, "no_such_module", "no-such-package")
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit, match="pip install no-such-package"):
        gpu.main()
