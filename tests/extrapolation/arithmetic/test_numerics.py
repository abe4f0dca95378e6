"""Every output element against the closed form, bit for bit."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from expo_ray.checkpoints import WeightsDigest, open_checkpoint, weights_digest
from expo_ray.errors import ShardError
from expo_ray.extrapolation import extrapolate, stream_weights
from expo_ray.extrapolation.arithmetic.formula import BLOCK_ELEMENTS
from expo_ray.extrapolation.planning.plan import build_plan
from expo_ray.extrapolation.shards import streaming, tasks
from expo_ray.extrapolation.shards.chunks import split_chunks
from expo_ray.extrapolation.shards.streaming import fill_plan
from expo_ray.extrapolation.shards.tasks import WRITE, shard_task
from tests.extrapolation.synthetic import change_tasks, closed_form, load, noise, same_bits, write

FLOATS = [torch.bfloat16, torch.float16, torch.float32, torch.float64]


def check(initial: Path, aligned: Path, output: Path, alpha: float, dtype=None) -> None:
    before, after, result = load(initial), load(aligned), load(output)
    assert result.keys() == after.keys()
    for name, tensor in after.items():
        expected = closed_form(before[name], tensor, alpha, dtype)
        assert same_bits(result[name], expected), name


def mixed_pair(folder: Path) -> tuple[Path, Path]:
    shapes = {
        "a.weight": (300, 511),
        "b": (),
        "c": (0, 3),
        "layers.10.w": (7,),
        "layers.9.w": (65,),
    }
    sides: list[dict[str, torch.Tensor]] = [{}, {}]
    for i, (name, shape) in enumerate(shapes.items()):
        for j, dtype in enumerate(FLOATS):
            sides[0][f"{name}.{j}"] = noise(shape, dtype, seed=i)
            # Every dtype meets every other one across the two sides.
            other = FLOATS[(j + i) % 4]
            moved = noise(shape, torch.float64, seed=i) + noise(shape, torch.float64, 99 + i, 1e-3)
            sides[1][f"{name}.{j}"] = moved.to(other)
    for side, value in zip(sides, (1, 5), strict=True):
        side["position_ids"] = torch.arange(10) + value
        side["mask"] = torch.tensor([True, False, value == 1])
        side["small"] = torch.tensor([value, 255], dtype=torch.uint8)
    return (
        write(folder / "initial", sides[0], num_shards=3),
        write(folder / "aligned", sides[1], num_shards=2),
    )


@pytest.mark.parametrize("alpha", [0.3, -1.0, 0.0, 8.0, 1e-3])
def test_all_dtypes_and_mixtures_match_the_closed_form(tmp_path: Path, alpha: float) -> None:
    initial, aligned = mixed_pair(tmp_path)
    extrapolate(initial, aligned, tmp_path / "out", alpha=alpha, address="inline")
    check(initial, aligned, tmp_path / "out", alpha)


@pytest.mark.parametrize("name", ["bfloat16", "float16", "float32"])
def test_output_dtype_is_one_rounding_at_the_end(tmp_path: Path, name: str) -> None:
    initial, aligned = mixed_pair(tmp_path)
    out = tmp_path / "out"
    extrapolate(initial, aligned, out, alpha=0.7, output_dtype=name, address="inline")
    check(initial, aligned, out, 0.7, getattr(torch, name))


def test_alpha_zero_is_aligned_and_minus_one_is_near_initial(
    pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    extrapolate(*pico_pair, tmp_path, alpha=[0.0, -1.0], address="inline")
    initial, aligned = load(pico_pair[0]), load(pico_pair[1])
    zero, minus_one = load(tmp_path / "alpha-0"), load(tmp_path / "alpha--1")
    for name in aligned:
        assert torch.equal(zero[name], aligned[name])
        torch.testing.assert_close(minus_one[name], initial[name], rtol=1e-2, atol=1e-6)


def test_no_fused_multiply_add(tmp_path: Path) -> None:
    """The pair is big enough to hold elements that fusing, or bfloat16 arithmetic, would change."""
    before, after = (noise((512, 1024), torch.bfloat16, seed) for seed in (1, 2))
    initial = write(tmp_path / "initial", {"w": before})
    aligned = write(tmp_path / "aligned", {"w": after})
    extrapolate(initial, aligned, tmp_path / "out", alpha=0.3, address="inline")
    result = load(tmp_path / "out")["w"]
    delta = after.float() - before.float()
    exact = after.double() + float(torch.tensor(0.3)) * delta.double()
    in_bfloat16 = after + 0.3 * (after - before)
    assert same_bits(result, closed_form(before, after, 0.3))
    assert not torch.equal(result, exact.float().to(torch.bfloat16))
    assert not torch.equal(result, in_bfloat16)


def test_golden_digest(tmp_path: Path) -> None:
    """Changes when the arithmetic, the layout or the header writer changes: then say why."""
    integers = torch.arange(1, 4097)
    before = (integers % 97 / 64).to(torch.bfloat16).reshape(64, 64)
    after = before + (integers % 31 / 512).to(torch.bfloat16).reshape(64, 64)
    initial = write(tmp_path / "initial", {"w": before, "n": torch.ones(64)})
    aligned = write(tmp_path / "aligned", {"w": after, "n": torch.full((64,), 1.25)})
    result = extrapolate(initial, aligned, tmp_path / "out", alpha=0.3, address="inline")
    digest = hashlib.sha256((tmp_path / "out" / "model.safetensors").read_bytes()).hexdigest()
    assert digest == GOLDEN_FILE
    assert result.outputs[0].weights_digest == GOLDEN_WEIGHTS


GOLDEN_FILE = "f03b51b1b493200f421b69d6deb21c3f318c353da51a53eabee9b5aa9c20e76e"
GOLDEN_WEIGHTS = "blake3:c9a6578c8335bae27d91c6a8917d8d0eb7f3d33491e34d39c62d39d2e5d6c87e"


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    num_elements=st.integers(1, 3000),
    dtypes=st.tuples(st.sampled_from(FLOATS), st.sampled_from(FLOATS)),
    alpha=st.floats(-2, 30, width=32).map(lambda alpha: alpha + 0.0),
    scale=st.sampled_from([1e-30, 1e-4, 1.0, 100.0]),
    seed=st.integers(0, 2**20),
)
def test_random_tensors_match_the_closed_form(
    tmp_path_factory: pytest.TempPathFactory,
    num_elements: int,
    dtypes: tuple[torch.dtype, torch.dtype],
    alpha: float,
    scale: float,
    seed: int,
) -> None:
    folder = tmp_path_factory.mktemp("random")
    before = noise((num_elements,), dtypes[0], seed, scale)
    after = (before.double() + noise((num_elements,), torch.float64, seed + 1, scale)).to(dtypes[1])
    initial = write(folder / "initial", {"w": before})
    aligned = write(folder / "aligned", {"w": after})
    streamed = dict(stream_weights(initial, aligned, alpha, allow_overflow=True))
    assert same_bits(streamed["w"], closed_form(before, after, alpha))


def test_streamed_weights_are_the_written_ones(tmp_path: Path) -> None:
    initial, aligned = mixed_pair(tmp_path)
    extrapolate(initial, aligned, tmp_path / "out", alpha=0.3, address="inline")
    written = load(tmp_path / "out")
    streamed = list(stream_weights(initial, aligned, 0.3))
    assert [name for name, _ in streamed] == sorted(written)
    for name, tensor in streamed:
        assert same_bits(tensor, written[name]), name


@pytest.mark.parametrize("is_compiled", [False, True])
def test_weights_are_put_into_tensors_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_compiled: bool
) -> None:
    initial, aligned = mixed_pair(tmp_path)
    extrapolate(initial, aligned, tmp_path / "out", alpha=0.3, address="inline")
    written = load(tmp_path / "out")
    monkeypatch.setattr(streaming, "CHUNK_BYTES", 4096)
    monkeypatch.setattr(tasks, "MIN_COMPILED_BYTES", 0 if is_compiled else 1 << 60)
    places = {
        name: torch.empty(t.shape, dtype=torch.float64 if t.is_floating_point() else t.dtype)
        for name, t in written.items()
    }

    def place_of(name: str, shape: torch.Size) -> torch.Tensor:
        assert places[name].shape == shape
        return places[name].view(-1)

    digest = WeightsDigest()
    plan = build_plan(initial, aligned)
    fill_plan(plan, 0.3, place_of=place_of, digest=digest)
    assert digest.written() == weights_digest(open_checkpoint(tmp_path / "out"))
    for name, tensor in written.items():
        assert torch.equal(places[name], tensor.to(places[name].dtype)), name

    def refuse(name: str, shape: torch.Size) -> torch.Tensor:
        raise ShardError("no place", where=name)

    with pytest.raises(ShardError, match="no place"):
        fill_plan(plan, 0.3, place_of=refuse, digest=WeightsDigest())


def test_chunks_cover_every_element_once(tmp_path: Path) -> None:
    initial, aligned = mixed_pair(tmp_path)
    plan = build_plan(initial, aligned)
    task = shard_task(plan, plan.shards[0], WRITE, ())
    for chunk_bytes in (4096, 65536):
        position = [0] * len(plan.shards[0].tensors)
        for chunk in split_chunks(task, chunk_bytes):
            assert chunk.start == position[chunk.index]
            item_bytes = plan.shards[0].tensors[chunk.index].aligned.num_bytes
            item_bytes //= plan.shards[0].tensors[chunk.index].aligned.num_elements
            assert chunk.num_elements * item_bytes <= chunk_bytes
            position[chunk.index] += chunk.num_elements
        assert position == [pair.aligned.num_elements for pair in plan.shards[0].tensors]


@pytest.mark.parametrize("chunk_bytes", [64 * 1024, 256 * 1024])
@pytest.mark.parametrize("num_threads", [1, 4])
def test_bytes_depend_on_neither_chunks_nor_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, num_threads: int
) -> None:
    n = BLOCK_ELEMENTS + 70_001
    before, after = (noise((n,), torch.bfloat16, seed) for seed in (1, 2))
    initial = write(tmp_path / "initial", {"w": before, "v": before[:5].clone()})
    aligned = write(tmp_path / "aligned", {"w": after, "v": after[:5].clone()})
    change_tasks(monkeypatch, chunk_bytes=chunk_bytes, num_threads=num_threads)
    extrapolate(initial, aligned, tmp_path / "out", alpha=0.3, address="inline")
    check(initial, aligned, tmp_path / "out", 0.3)


@pytest.mark.parametrize("side", ["initial", "aligned"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_input_is_refused_by_name(tmp_path: Path, side: str, value: float) -> None:
    tensors = {
        "initial": noise((9, 9), torch.float32, 1),
        "aligned": noise((9, 9), torch.float32, 2),
    }
    tensors[side][4, 4] = value
    folders = [
        write(tmp_path / name, {"fine": noise((3,), torch.float32, 0), "bad.w": t})
        for name, t in tensors.items()
    ]
    with pytest.raises(ShardError, match="not finite") as caught:
        extrapolate(*folders, tmp_path / "out", alpha=0.3, address="inline")
    assert "bad.w" in str(caught.value.where)
    assert not (tmp_path / "out" / "expo_ray.json").exists()
    assert not list((tmp_path / "out").glob("*.safetensors"))
    extrapolate(*folders, tmp_path / "out", alpha=0.3, address="inline", allow_nonfinite=True)
    torch.testing.assert_close(
        load(tmp_path / "out")["bad.w"],
        closed_form(tensors["initial"], tensors["aligned"], 0.3),
        equal_nan=True,
        rtol=0,
        atol=0,
    )


@pytest.mark.parametrize(
    ("dtype", "big", "alpha", "output_dtype"),
    [
        (torch.float16, 60000.0, 1.0, "auto"),
        (torch.float32, 3e38, 1.0, "auto"),
        (torch.float32, 1e5, 0.5, "float16"),
        (torch.bfloat16, 3e38, 0.5, "auto"),
        (torch.float64, 1e39, 0.5, "float32"),
    ],
)
def test_overflow_stops_with_the_name(
    tmp_path: Path, dtype: torch.dtype, big: float, alpha: float, output_dtype: str
) -> None:
    before, after = torch.zeros(8, dtype=dtype), torch.full((8,), big, dtype=dtype)
    initial = write(tmp_path / "initial", {"w": before})
    aligned = write(tmp_path / "aligned", {"w": after})
    options = {"alpha": alpha, "address": "inline", "output_dtype": output_dtype}
    with pytest.raises(ShardError, match="does not fit") as caught:
        extrapolate(initial, aligned, tmp_path / "out", **options)
    assert "'w'" in str(caught.value.where)
    extrapolate(initial, aligned, tmp_path / "out", allow_overflow=True, **options)
    assert torch.isinf(load(tmp_path / "out")["w"]).all()


def test_large_finite_values_are_no_overflow(tmp_path: Path) -> None:
    """Their squares overflow float32, which must not be taken for a bad value."""
    before, after = torch.full((8,), 1e30), torch.full((8,), 2e30)
    initial = write(tmp_path / "initial", {"w": before})
    aligned = write(tmp_path / "aligned", {"w": after})
    extrapolate(initial, aligned, tmp_path / "out", alpha=0.5, address="inline")
    assert same_bits(load(tmp_path / "out")["w"], closed_form(before, after, 0.5))
