from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from expo_ray.checkpoints import open_checkpoint
from expo_ray.extrapolation.nodes.trial_load import LoadingCheck, LoadingRequest, check_loading
from tests.extrapolation.synthetic import load, write


def check_folder(folder: Path, **config: object) -> LoadingCheck:
    checkpoint = open_checkpoint(str(folder))
    tensors = {ref.name: (ref.dtype, ref.shape) for ref in checkpoint.tensors.values()}
    return check_loading(LoadingRequest(config=checkpoint.config | config, tensors=tensors))


def test_known_architecture_loads(pico_pair: tuple[Path, Path]) -> None:
    assert check_folder(pico_pair[1]).status == "loads"


def test_missing_and_unexpected_names_are_listed(
    pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    tensors = load(pico_pair[1])
    tensors["model.strange.weight"] = torch.ones(2)
    del tensors["model.norm.weight"]
    config = json.loads((pico_pair[1] / "config.json").read_text())
    check = check_folder(write(tmp_path / "x", tensors, **config))
    assert check.status == "incomplete"
    assert check.missing == ("model.norm.weight",)
    assert check.unexpected == ("model.strange.weight",)


def test_wrong_shape_fails(pico_pair: tuple[Path, Path], tmp_path: Path) -> None:
    tensors = load(pico_pair[1]) | {"model.norm.weight": torch.ones(7)}
    config = json.loads((pico_pair[1] / "config.json").read_text())
    assert check_folder(write(tmp_path / "x", tensors, **config)).status == "fails"


def test_custom_code_is_never_run(pico_pair: tuple[Path, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(pico_pair[1], tmp_path / "x"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    check = check_folder(folder)
    assert check.status == "skipped"
    assert "mine" in check.note
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": []},
        {"architectures": 5},
        {"architectures": {}},
        {"num_attention_heads": 0},
        {"rms_norm_eps": "tiny"},
        {"pad_token_id": -7000},
    ],
)
def test_no_config_is_so_strange_that_the_work_ends(
    pico_pair: tuple[Path, Path], config: dict[str, object]
) -> None:
    assert check_folder(pico_pair[1], **config).status in {"fails", "skipped", "loads"}


MEANWHILE_SCRIPT = """
import sys, threading
from expo_ray.extrapolation import extrapolate, job
from expo_ray.extrapolation.nodes import fanout
run_here = fanout._run_here
def after_the_imports(*arguments):
    assert "transformers" not in before
    for thread in threading.enumerate():
        if thread.name == "trial-load":
            thread.join(timeout=150)
    assert "transformers.models.llama.modeling_llama" in sys.modules
    return run_here(*arguments)
fanout._run_here = after_the_imports
before = set(sys.modules)
print(extrapolate(*sys.argv[1:], alpha=0.3, address="inline").loading.status)
"""


def test_inline_imports_what_the_trial_load_needs_beside_the_shards(
    pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", MEANWHILE_SCRIPT, *map(str, pico_pair), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=170)
    assert done.stdout == "loads\n", done.stderr[-3000:]
