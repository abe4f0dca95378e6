"""Pairs whose sides differ by a tensor: served and answered as extrapolate would write them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from expo_ray import extrapolate, loadtest
from expo_ray.checkpoints import WeightsDigest
from expo_ray.cli.main import app
from expo_ray.errors import ConfigError, PairError
from expo_ray.serving import ModelSource, generate, serve
from expo_ray.workflow.run import select

Pair = tuple[Path, Path]
EXTRA = "model.adapter_gate.weight"
SPECS = [f"copy:{EXTRA}", "copy:no.such.*"]
"""The first lets the pair pass; the second is refused, which only an opened pair can tell."""


@pytest.fixture(scope="module")
def pair(pico_pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """The pico pair, whose aligned side has one tensor more."""
    aligned = tmp_path_factory.mktemp("extra") / "aligned"
    shutil.copytree(pico_pair[1], aligned)
    save_file({EXTRA: torch.ones(4)}, aligned / "extra.safetensors", metadata={"format": "pt"})
    index = aligned / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][EXTRA] = "extra.safetensors"
    index.write_text(json.dumps(content))
    return pico_pair[0], aligned


def test_a_live_pair_has_the_bits_of_the_written_one(pair: Pair, tmp_path: Path) -> None:
    initial, aligned = map(str, pair)
    with pytest.raises(PairError, match="missing from initial"):
        ModelSource(model=aligned, initial=initial, alpha=0.5).check_pair()
    specs = (f"copy:{EXTRA}",)
    source = ModelSource(model=aligned, initial=initial, alpha=0.5, extra_tensors=specs)
    source.check_pair()
    streamed, filled = WeightsDigest(), WeightsDigest()
    tensors = dict(source.iter_weights(streamed))
    places = {name: torch.empty(tensor.numel()) for name, tensor in tensors.items()}
    source.fill(lambda name, shape: places[name], filled)
    extrapolate(*pair, tmp_path / "out", alpha=0.5, extra_tensors=specs, address="inline")
    written = ModelSource(model=str(tmp_path / "out")).known_digest()
    assert written == streamed.written() == filled.written()
    assert torch.equal(tensors[EXTRA], torch.ones(4))


def test_they_are_those_of_a_pair(pair: Pair) -> None:
    with pytest.raises(ConfigError, match="of a pair"):
        ModelSource(model=str(pair[1]), extra_tensors=("copy:x",))


@pytest.mark.parametrize("command", ["serve", "generate", "select", "loadtest"])
def test_the_flag_and_the_argument_reach_the_pair(
    command: str, pair: Pair, ray_cluster: str, tmp_path: Path
) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "a"}\n{"prompt": "b"}\n{"prompt": "c"}\n{"prompt": "d"}\n')
    initial, aligned = map(str, pair)
    output = str(tmp_path / "out")
    files = {"prompts": str(prompts), "output": output}
    live = {"initial": initial, "alpha": 0.5}
    place: dict[str, Any] = {"address": ray_cluster, "extra_tensors": SPECS}
    calls = {
        "serve": lambda: serve(aligned, **live, **place),
        "generate": lambda: generate(aligned, **files, **live, **place),
        "select": lambda: select(initial, aligned, **files, **place),
        "loadtest": lambda: loadtest(aligned, concurrency=[1], **files, **live, **place),
    }
    words = {
        "serve": [aligned],
        "generate": [aligned, "--prompts", str(prompts), "--output", output],
        "select": [initial, aligned, "--prompts", str(prompts), "--output", output],
        "loadtest": [aligned, "--prompts", str(prompts), "--output", output],
    }[command]
    words = [command, *words, "--address", ray_cluster]
    words += [word for spec in SPECS for word in ("--extra-tensors", spec)]
    words += [] if command == "select" else ["--initial", initial, "--alpha", "0.5"]
    words += ["--concurrency", "1"] if command == "loadtest" else []
    with pytest.raises(ConfigError, match="matches no tensor") as caught:
        calls[command]()
    by_flag = CliRunner().invoke(app, words).exception
    assert isinstance(by_flag, ConfigError), by_flag
    assert (by_flag.where, caught.value.where) == ("--extra-tensors", "extra_tensors=")
    assert by_flag.got == caught.value.got == "copy:no.such.*"
    assert not Path(output).exists()
