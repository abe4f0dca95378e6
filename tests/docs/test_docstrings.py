"""Every public function has an example in its docstring, and each is run as it stands there."""

from __future__ import annotations

import doctest
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import expo_ray
from tests.docs.workbench import PORT, add_results, environment, make_workbench, serving
from tests.head_node import free_port, head_node
from tests.rating_judge import Judge, PreferringJudge, rating_judge

# These read and write files; the others put models behind Ray Serve.
QUICK = {
    "alpaca_eval_metrics",
    "check_recipe",
    "compare",
    "compare_pair",
    "diagnose",
    "diagnose_trajectory",
    "doctor",
    "extrapolate",
    "inspect_checkpoint",
    "new_recipe",
    "open_llm_changes",
    "plan_prompts",
    "reward_self_tests",
    "verify",
    "write_report",
}
JUDGED = {"alpaca_eval_judgements": PreferringJudge, "mt_bench_scores": Judge}
NEED_A_PLACE_OF_THEIR_OWN = {*JUDGED, "serve", "set_alpha", "submit"}


def test_every_public_function_shows_an_example() -> None:
    docstrings = {name: getattr(expo_ray, name).__doc__ or "" for name in expo_ray.__all__}
    assert [name for name, text in docstrings.items() if ">>>" not in text] == []


def _run(name: str, port: str = PORT, **names: Any) -> None:
    text = getattr(expo_ray, name).__doc__.replace(f":{PORT}", f":{port}")
    text = text.replace(f"port={PORT}", f"port={port}")
    example = doctest.DocTestParser().get_doctest(
        text, {"expo_ray": expo_ray, **names}, name, None, None
    )
    output: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    runner.run(example, out=output.append)
    assert not runner.failures, "".join(output)


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = add_results(make_workbench(tmp_path))
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name", sorted(QUICK))
def test_quick_example(name: str, bench: Path) -> None:
    _run(name)


@pytest.mark.parametrize("name", sorted(JUDGED))
def test_example_of_a_judge(name: str, bench: Path) -> None:
    with rating_judge(JUDGED[name]) as port:
        _run(name, port=str(port))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(expo_ray.__all__) - QUICK - NEED_A_PLACE_OF_THEIR_OWN))
def test_example_with_replicas(name: str, bench: Path, ray_cluster: str) -> None:
    _run(name)


@pytest.mark.slow
def test_example_of_serve(bench: Path) -> None:
    """In a process with a Ray of its own: Serve of the session's has an address already."""
    code = f"from tests.docs.test_docstrings import _run; _run('serve', port='{free_port()}')"
    subprocess.run([sys.executable, "-c", code], cwd=bench, env=environment(), check=True)


@pytest.mark.slow
def test_example_of_set_alpha(bench: Path) -> None:
    command = "expo-ray serve ./dpo --initial ./sft --alpha 0.3 --allow-alpha-change"
    assert command in (expo_ray.set_alpha.__doc__ or "")
    with serving(command, bench, environment()) as port:
        _run("set_alpha", port=port)


@pytest.mark.slow
def test_example_of_submit(bench: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with head_node(bench) as variables:
        for key in ("RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE"):
            monkeypatch.setenv(key, variables[key])
        _run("submit", shared=bench)
