"""A fit through a trajectory, served: the bits of the written checkpoint, whatever the alpha."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from expo_ray.checkpoints import WeightsDigest
from expo_ray.errors import ConfigError, PairError
from expo_ray.extrapolation import extrapolate_trajectory
from expo_ray.extrapolation.planning.alpha_rules import AlphaRules
from expo_ray.extrapolation.trajectories.fitted_change import FittedChange
from expo_ray.serving import ModelSource, ServedModel
from expo_ray.serving.commands import model_source
from expo_ray.serving.engines.loading import load_model, refill
from expo_ray.serving.engines.vllm_config import source_fields
from tests.bent_path import bent_path
from tests.pico import save_pair

FITS = ("line", "line:window=2", "rank1", "ema", "bema")


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory, pico_pair: tuple[Path, Path]) -> Path:
    return bent_path(tmp_path_factory.mktemp("training"), pico_pair)


def source_along(training: Path, fit: str, alpha: float) -> ModelSource:
    return model_source(None, None, alpha, None, along=FittedChange.of(training, fit))


def streamed_and_filled(source: ModelSource) -> tuple[str, str]:
    streamed, filled = WeightsDigest(), WeightsDigest()
    tensors = dict(source.iter_weights(streamed))
    places = {name: torch.empty(tensor.numel()) for name, tensor in tensors.items()}
    source.fill(lambda name, shape: places[name], filled)
    return streamed.written(), filled.written()


@pytest.mark.parametrize("fit", FITS)
def test_what_is_streamed_has_the_bits_of_what_is_written(
    training: Path, tmp_path: Path, fit: str
) -> None:
    written = extrapolate_trajectory(
        training, tmp_path / "out", fit=fit, alpha=[-0.3, 0.5], address="inline"
    )
    for output in written.outputs:
        assert output.alpha is not None
        source = source_along(training, fit, output.alpha)
        source.check()
        assert streamed_and_filled(source) == (output.weights_digest,) * 2
        # As a worker of vLLM gets it: in plain values, at another address.
        sent = json.loads(json.dumps(source_fields(source.pinned())))
        assert streamed_and_filled(ModelSource(**sent)) == (output.weights_digest,) * 2


def test_rules_and_alpha_0_mean_what_they_mean_of_a_pair(
    training: Path, tmp_path: Path, pico_pair: tuple[Path, Path]
) -> None:
    rules = [{"match": "*norm*", "alpha": 0}, {"match": "*", "alpha": 0.4}]
    (out,) = extrapolate_trajectory(
        training, tmp_path / "out", alpha_rules=AlphaRules.parse(rules), address="inline"
    ).outputs
    source = model_source(None, None, None, rules, along=FittedChange.of(training))
    assert streamed_and_filled(source)[0] == out.weights_digest
    aligned = source_along(training, "rank1", 0.0)
    assert not aligned.is_live
    assert streamed_and_filled(aligned) == streamed_and_filled(ModelSource(model=str(pico_pair[1])))


def test_two_fits_are_not_one_pair(training: Path) -> None:
    line, ema = (source_along(training, fit, 0.5) for fit in ("line", "ema"))
    assert line.is_same_pair(line.at(0.7))
    assert not line.is_same_pair(ema)
    assert line.source_id != ema.source_id


def test_a_checkpoint_written_anew_is_measured_anew(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    training = bent_path(one, save_pair(one / "pair"))
    before = streamed_and_filled(source_along(training, "rank1", 0.5))
    bent_path(other, save_pair(other / "pair", seed=5))
    for file in other.rglob("*.safetensors"):
        file.replace(one / file.relative_to(other))
    (written,) = extrapolate_trajectory(
        training, tmp_path / "out", fit="rank1", alpha=0.5, address="inline"
    ).outputs
    after = streamed_and_filled(source_along(training, "rank1", 0.5))
    assert after == (written.weights_digest,) * 2 != before


def test_wrong_requests_show_before_anything_is_served(
    training: Path, tmp_path: Path, pico_pair: tuple[Path, Path]
) -> None:
    along = FittedChange.of(training)
    with pytest.raises(ConfigError, match="a trajectory brings its models"):
        model_source(pico_pair[1], None, 0.5, None, along=along)
    with pytest.raises(ConfigError, match="an argument is missing"):
        model_source(None, None, 0.5, None)
    with pytest.raises(ConfigError, match="needs both initial and alpha"):
        model_source(None, None, None, None, along=along)
    with pytest.raises(ConfigError, match="rank1 needs more checkpoints"):
        FittedChange.of(
            [{"step": s, "checkpoint": str(p)} for s, p in enumerate(pico_pair)], "rank1"
        )
    stranger = save_pair(tmp_path / "stranger", hidden_size=64)[0]
    points = [*along.points[:2], (300.0, str(stranger)), along.points[3]]
    listed = [{"step": step, "checkpoint": place} for step, place in points]
    with pytest.raises(PairError, match="another shape"):
        model_source(None, None, 0.5, None, along=FittedChange.of(listed))


@pytest.mark.parametrize("fit", ["line", "rank1"])
def test_an_engine_goes_to_another_alpha_in_place(training: Path, tmp_path: Path, fit: str) -> None:
    written = extrapolate_trajectory(
        training, tmp_path / "out", fit=fit, alpha=[0.5, 2.0], address="inline"
    )
    digests = [output.weights_digest for output in written.outputs]
    source = source_along(training, fit, 0.5)
    loaded = load_model(source, device="cpu")
    assert loaded.weights_digest == digests[0]
    assert refill(loaded, source.at(2.0)).weights_digest == digests[1]
    (parameter, expected) = (
        dict(model.named_parameters())["model.layers.0.mlp.up_proj.weight"]
        for model in (
            loaded.model,
            load_model(ModelSource(model=written.outputs[1].path), device="cpu").model,
        )
    )
    assert torch.equal(parameter, expected)


def test_a_service_changes_alpha_along_the_fit(
    training: Path, tmp_path: Path, ray_cluster: str
) -> None:
    written = extrapolate_trajectory(
        training, tmp_path / "out", fit="rank1", alpha=[0.5, 2.0], address="inline"
    )
    digests = [output.weights_digest for output in written.outputs]
    source = source_along(training, "rank1", 0.5)
    with ServedModel(source, allow_alpha_change=True) as served:
        assert served.weights_digest == digests[0]
        served.set_alpha(2.0)
        assert served.weights_digest == digests[1]
