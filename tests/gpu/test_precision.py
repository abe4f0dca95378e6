"""bfloat16 on a device is as exact as bfloat16 on the CPU, in logits and rewards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from benchmarks.device_checks import (
    GREEDY,
    PROMPTS,
    Errors,
    chat_rows,
    logit_errors,
    reward_errors,
)
from expo_ray.serving.engines.transformers_engine import TransformersEngine
from expo_ray.serving.source import ModelSource
from tests.pico import pico_config, save_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied model in bfloat16: a tied random one only repeats its last token."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(pico_config(tie_word_embeddings=False, initializer_range=0.2))
    return save_model(model.to(torch.bfloat16), tmp_path_factory.mktemp("precision") / "model")


def test_logits_of_a_padded_batch_from_its_cache(device: str, folder: Path) -> None:
    errors = logit_errors(folder, device)
    assert errors.is_sound, errors


def test_rewards_of_a_classifier(device: str, pico_reward_model: Path) -> None:
    errors = reward_errors(str(pico_reward_model), device)
    assert errors.is_sound, errors


def test_rewards_of_a_pair(device: str, pico_pair: tuple[Path, Path]) -> None:
    initial, aligned = map(str, pico_pair)
    errors = reward_errors("implicit:beta=1", device, initial=initial, aligned=aligned)
    assert errors.is_sound, errors


def test_a_row_is_the_same_alone_and_in_a_batch_in_float32(device: str, folder: Path) -> None:
    engine = TransformersEngine(device=device)
    engine.load(ModelSource(model=str(folder)))
    engine._loaded.model.float()
    rows = chat_rows(engine, PROMPTS, GREEDY, 12)
    assert engine.generate(rows) == [engine.generate([row])[0] for row in rows]


def test_a_wrong_mask_is_no_matter_of_rounding(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bound can fail: with padding that is read, the batch is far from its rows alone."""
    forward = LlamaForCausalLM.forward

    def reading_the_padding(self, *args: object, **kwargs):
        mask = kwargs.get("attention_mask")
        return forward(
            self, *args, **{**kwargs, "attention_mask": None if mask is None else mask * 0 + 1}
        )

    monkeypatch.setattr(LlamaForCausalLM, "forward", reading_the_padding)
    assert not logit_errors(folder, "cpu").is_sound


def test_what_is_no_error_at_all_is_not_sound() -> None:
    """Nothing to compare with: then the reference was not in bfloat16."""
    assert not Errors(device=0.0, cpu=0.0).is_sound
    assert Errors(device=0.0, cpu=0.01).is_sound
