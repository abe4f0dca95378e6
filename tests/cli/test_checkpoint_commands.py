"""Flags of the checkpoint commands, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import typer
import yaml
from typer.testing import CliRunner

from expo_ray.cli import checkpoint_commands
from tests.extrapolation.synthetic import write


def invoke(*words: object) -> str:
    app = typer.Typer()
    checkpoint_commands.register(app)
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_diagnose_draws_layers_by_module(pico_pair: tuple[Path, Path]) -> None:
    plain = invoke("diagnose", *pico_pair, "--address", "inline")
    drawn = invoke("diagnose", *pico_pair, "--address", "inline", "-v")
    assert "by layer and module" not in plain
    assert "by layer and module" in drawn
    rows = [line.split() for line in drawn.splitlines() if line[:2].strip().isdigit()]
    found = json.loads(invoke("diagnose", *pico_pair, "--address", "inline", "--json"))
    assert [row[0] for row in rows] == [str(layer["layer"]) for layer in found["layers"]]
    for row, layer in zip(rows, found["layers"], strict=True):
        assert row[1:] == [f"{v:.2e}" for v in layer["relative_delta_by_group"].values()]


def test_rules_transforms_export_and_estimate(pico_pair: tuple[Path, Path], tmp_path: Path) -> None:
    rules, merge, out = tmp_path / "rules.yaml", tmp_path / "merge.yaml", tmp_path / "out"
    rules.write_text('[{match: "*norm*", alpha: 0}]')
    start = ("extrapolate", *pico_pair, out, "--address", "inline", "-a", "0.5")
    text = invoke(*start, "--alpha-rules", rules, "--transform", "clip:norm=0.1")
    assert "by rules" in text
    assert "by rules" in invoke("verify", out, "--address", "inline")
    assert "by rules" in invoke("inspect", out)
    recorded = json.loads((out / "expo_ray.json").read_text())
    assert recorded["options"]["transforms"] == ["clip:norm=0.1"]
    cluster = ("--dry-run", "--nodes", "2", "--node-bandwidth", "1MB")
    assert "2 nodes" in invoke(*start[:3], tmp_path / "o", *start[4:], *cluster)
    invoke(*start[:3], tmp_path / "o", *start[4:], "--dry-run", "--export-mergekit", merge)
    assert yaml.safe_load(merge.read_text())["models"][0]["parameters"] == {"weight": 1.5}


def test_inspect_says_that_weights_are_quantized(tmp_path: Path) -> None:
    settings = {"quantization_config": {"quant_method": "gptq"}}
    folder = write(tmp_path / "gptq", {"a.weight": torch.ones(2, 2)}, **settings)
    assert "gptq (quantization_config in config.json)" in invoke("inspect", folder)
    assert "quantization" not in invoke("inspect", write(tmp_path / "p", {"a": torch.ones(2)}))
