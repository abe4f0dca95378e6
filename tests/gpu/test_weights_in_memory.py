"""What lies in a device's memory is, bit for bit, what lies on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from benchmarks.device_checks import memory_digest
from expo_ray.checkpoints import open_checkpoint
from expo_ray.extrapolation import extrapolate, stream_weights
from expo_ray.serving.engines.transformers_engine import TransformersEngine
from expo_ray.serving.source import ModelSource

ALPHA = 0.5


def written_digest(pair: tuple[Path, Path], folder: Path, alpha: float) -> str:
    [output] = extrapolate(*pair, folder / str(alpha), alpha=alpha, address="inline").outputs
    return output.weights_digest


def test_streamed_weights_in_a_model_on_the_device(
    device: str, pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    written = written_digest(pico_pair, tmp_path, ALPHA)
    aligned = open_checkpoint(pico_pair[1])
    config = AutoConfig.from_pretrained(pico_pair[1])
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).to(device)
    assert memory_digest(model, aligned) != written
    places = model.state_dict()
    for name, tensor in stream_weights(*pico_pair, ALPHA):
        places[name].copy_(tensor)
    assert {place.device.type for place in places.values()} == {device}
    assert memory_digest(model, aligned) == written


def test_the_engine_holds_what_was_written_at_every_alpha(
    device: str, pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    initial, aligned = map(str, pico_pair)
    engine = TransformersEngine(device=device)
    models = set()
    for alpha in (ALPHA, 2.0, -1.0, ALPHA):
        engine.load(ModelSource(model=aligned, initial=initial, alpha=alpha))
        model = engine._loaded.model
        models.add(id(model))
        assert {place.device.type for place in model.state_dict().values()} == {device}
        held = memory_digest(model, open_checkpoint(aligned))
        assert held == engine.weights_digest == written_digest(pico_pair, tmp_path, alpha)
    assert len(models) == 1, "another alpha goes into the same memory"


def test_a_digest_is_not_taken_of_rounded_values(pico_pair: tuple[Path, Path]) -> None:
    model = AutoModelForCausalLM.from_pretrained(pico_pair[1], dtype=torch.float32)
    checkpoint = open_checkpoint(pico_pair[1])
    memory_digest(model, checkpoint)
    with torch.no_grad():
        model.model.norm.weight[0] += 2.0**-20
    with pytest.raises(ValueError, match=r"norm\.weight"):
        memory_digest(model, checkpoint)
