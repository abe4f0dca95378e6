"""Trajectories in a bucket, and of LoRA adapters on one base."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from expo_ray.extrapolation import extrapolate_trajectory, verify
from expo_ray.extrapolation.trajectories.trajectory import open_trajectory
from tests.checkpoints.s3_server import BUCKET, client, upload
from tests.extrapolation.synthetic import load
from tests.extrapolation.test_adapters import adapter, merged_by_peft
from tests.extrapolation.trajectories.paths import synthetic_path
from tests.extrapolation.trajectories.test_job import NUM_VALUES, REFERENCES, STEPS, save
from tests.pico import save_pair


def test_a_bucket_holds_inputs_file_and_output(tmp_path: Path, s3: str) -> None:
    rows = synthetic_path("noisy line", STEPS, num_values=NUM_VALUES)
    file = save(tmp_path, rows, STEPS, torch.bfloat16)
    here = extrapolate_trajectory(file, tmp_path / "out", fit="rank1", alpha=1, address="inline")
    for step in STEPS:
        upload(s3, tmp_path / f"step_{step}", f"path/step_{step}")
        upload(s3, tmp_path / f"step_{step}", f"run/checkpoint-{step}")
    key = "path/trajectory.yaml"
    client(s3).put_object(Bucket=BUCKET, Key=key, Body=file.read_bytes())
    out = f"s3://{BUCKET}/path/out"
    there = extrapolate_trajectory(
        f"s3://{BUCKET}/{key}", out, fit="rank1", alpha=1, address="inline"
    )
    assert there.outputs[0].weights_digest == here.outputs[0].weights_digest
    assert verify(out, address="inline").problems == ()
    assert open_trajectory(f"s3://{BUCKET}/run").steps == STEPS


@pytest.mark.parametrize("has_base", [False, True])
@pytest.mark.parametrize("fit", ["line", "rank1"])
def test_adapters_of_one_base_are_summed_as_models(
    tmp_path: Path, fit: str, has_base: bool
) -> None:
    base = save_pair(tmp_path, tie_word_embeddings=False)[0]
    steps = (100, 200, 400)
    folders = [adapter(base, tmp_path / "run" / f"checkpoint-{step}", seed=step) for step in steps]
    source: Path | list[dict[str, object]] = tmp_path / "run"
    models = [merged_by_peft(base, folder) for folder in folders]
    if has_base:  # what the training started from, in bfloat16; an adapter is summed in float32
        listed = zip((0, *steps), (base, *folders), strict=True)
        source = [{"step": step, "checkpoint": str(place)} for step, place in listed]
        models.insert(0, load(base))
        steps = (0, *steps)
    out = tmp_path / "out"
    result = extrapolate_trajectory(source, out, fit=fit, alpha=0.5, address="inline")
    assert f"LoRA adapters on {base}" in result.notes[0]
    for name, tensor in load(out).items():
        values = np.stack([model[name].double().numpy().ravel() for model in models])
        at = REFERENCES[fit]
        change = at(steps, values, steps[-1]) - at(steps, values, steps[0])
        wanted = torch.from_numpy(values[-1] + 0.5 * change).reshape(tensor.shape)
        assert torch.allclose(tensor.double(), wanted, rtol=1e-2, atol=1e-3), name
    assert verify(out, address="inline").problems == ()
