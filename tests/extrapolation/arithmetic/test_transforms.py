"""Transforms of delta against their definitions, whatever the chunks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from expo_ray.errors import ConfigError, ShardError
from expo_ray.extrapolation import extrapolate, stream_weights, verify
from expo_ray.extrapolation.arithmetic.formula import BLOCK_ELEMENTS
from expo_ray.extrapolation.arithmetic.transforms import parse_transforms
from expo_ray.extrapolation.outputs.record import read_record
from tests.extrapolation.synthetic import change_tasks, file_digests, load, noise, same_bits, write

ALPHA = 0.5
SHAPES = {"big": (300, 517), "tall": (41, 7), "vector": (33,), "scalar": (), "cube": (3, 4, 5)}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    dtypes = [torch.bfloat16, torch.float32, torch.float64, torch.float16, torch.bfloat16]
    sides = []
    for side, seed in (("initial", 0), ("aligned", 50)):
        tensors = {
            name: noise(shape, dtype, seed + i)
            for i, ((name, shape), dtype) in enumerate(zip(SHAPES.items(), dtypes, strict=True))
        }
        tensors["steps"] = torch.arange(4)
        sides.append(write(tmp_path / side, tensors))
    return sides[0], sides[1]


def deltas(pair: tuple[Path, Path]) -> dict[str, torch.Tensor]:
    before, after = load(pair[0]), load(pair[1])
    wide = {
        n: torch.float64 if t.dtype == torch.float64 else torch.float32 for n, t in after.items()
    }
    return {n: after[n].to(wide[n]) - before[n].to(wide[n]) for n in SHAPES}


def outputs(pair: tuple[Path, Path], new: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    after = load(pair[1])
    found = {n: (after[n].to(d.dtype) + ALPHA * d).to(after[n].dtype) for n, d in new.items()}
    return {**found, "steps": after["steps"]}


def run(pair: tuple[Path, Path], out: Path, *transforms: str, **options: object):
    return extrapolate(*pair, out, alpha=ALPHA, transforms=transforms, address="inline", **options)


def trimmed(delta: torch.Tensor, keep: float) -> torch.Tensor:
    count = max(1, round(keep * delta.numel()))
    smallest = delta.abs().flatten().sort(descending=True).values[count - 1]
    return torch.where(delta.abs() >= smallest, delta, torch.zeros_like(delta))


@pytest.mark.parametrize("keep", [0.2, 1e-9, 1.0])
def test_magnitude_keeps_the_largest_entries(
    pair: tuple[Path, Path], tmp_path: Path, keep: float
) -> None:
    run(pair, tmp_path / "out", f"magnitude:keep={keep}")
    expected = outputs(pair, {n: trimmed(d, keep) for n, d in deltas(pair).items()})
    written = load(tmp_path / "out")
    for name, tensor in expected.items():
        assert torch.equal(written[name], tensor), name
    row = read_record(tmp_path / "out")["tensors"]["big"]["statistics"]
    assert row["num_kept_by_transforms"] == int((trimmed(deltas(pair)["big"], keep) != 0).sum())


def test_clip_scales_down_to_the_norm(pair: tuple[Path, Path], tmp_path: Path) -> None:
    run(pair, tmp_path / "out", "clip:norm=5")
    written = load(tmp_path / "out")
    expected = {}
    for name, delta in deltas(pair).items():
        norm = float(delta.double().norm())
        expected[name] = delta * (5 / norm) if norm > 5 else delta
    for name, tensor in outputs(pair, expected).items():
        torch.testing.assert_close(written[name], tensor, msg=name)
    moved = (written["tall"].double() - load(pair[1])["tall"].double()).norm() / ALPHA
    assert float(moved) == pytest.approx(5, rel=1e-5)


def test_svd_is_the_best_approximation_of_its_rank(pair: tuple[Path, Path], tmp_path: Path) -> None:
    planned = run(pair, tmp_path / "out", "svd:rank=3", dry_run=True)
    plain = run(pair, tmp_path / "out", dry_run=True)
    extra = planned.plan["worker_memory_bytes"] - plain.plan["worker_memory_bytes"]
    assert extra > 3 * 300 * 517 * 8
    run(pair, tmp_path / "out", "svd:rank=3")
    written = load(tmp_path / "out")
    expected = deltas(pair)
    for name in ("big", "tall"):
        u, s, v = torch.linalg.svd(expected[name].double(), full_matrices=False)
        expected[name] = (u[:, :3] * s[:3] @ v[:3]).to(expected[name].dtype)
    for name, tensor in outputs(pair, expected).items():
        torch.testing.assert_close(written[name], tensor, rtol=1e-2, atol=1e-5, msg=name)


def test_dare_drops_its_share_and_keeps_the_mean(pair: tuple[Path, Path], tmp_path: Path) -> None:
    run(pair, tmp_path / "out", "dare:drop=0.75,seed=7", output_dtype="float32")
    before, after, written = (
        load(pair[0])["big"],
        load(pair[1])["big"],
        load(tmp_path / "out")["big"],
    )
    delta = after.float() - before.float()
    used = (written - after.float()) / ALPHA
    kept = used.abs() > 1e-6
    assert float(kept.double().mean()) == pytest.approx(0.25, abs=0.01)
    torch.testing.assert_close(used[kept], delta[kept] * 4, rtol=1e-3, atol=1e-5)
    run(pair, tmp_path / "other", "dare:drop=0.75,seed=8", output_dtype="float32")
    other = ((load(tmp_path / "other")["big"] - after.float()) / ALPHA).abs() > 1e-6
    assert float((kept & other).double().mean()) == pytest.approx(0.25**2, abs=0.01)


CHAIN = ("magnitude:keep=0.5", "dare:drop=0.3", "svd:rank=5", "clip:norm=20")


@pytest.mark.parametrize("chunk_bytes", [64 * 1024, 200_000])
@pytest.mark.parametrize("num_threads", [1, 3])
def test_chunks_and_threads_do_not_matter(
    pair: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    chunk_bytes: int,
    num_threads: int,
) -> None:
    assert 2 * BLOCK_ELEMENTS < 300 * 517
    result = run(pair, tmp_path / "one", *CHAIN)
    assert result.plan["bytes_in"] == result.bytes_read
    change_tasks(monkeypatch, chunk_bytes=chunk_bytes, num_threads=num_threads)
    run(pair, tmp_path / "two", *CHAIN)
    assert file_digests(tmp_path / "one") == file_digests(tmp_path / "two")
    streamed = dict(stream_weights(*pair, ALPHA, transforms=CHAIN))
    written = load(tmp_path / "one")
    assert all(same_bits(streamed[name], written[name]) for name in written)


def test_a_stream_has_the_bits_of_the_file_whatever_threads_torch_may_use(tmp_path: Path) -> None:
    sides = []
    for side, seed in (("initial", 0), ("aligned", 50)):
        wide = noise((300, 517), torch.float64, seed)
        sides.append(write(tmp_path / side, {"wide": wide}))
    num_threads = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        run((sides[0], sides[1]), tmp_path / "out", "clip:norm=1")
        streamed = dict(stream_weights(*sides, ALPHA, transforms=["clip:norm=1"]))
        assert torch.get_num_threads() == 4
    finally:
        torch.set_num_threads(num_threads)
    assert same_bits(streamed["wide"], load(tmp_path / "out")["wide"])


def test_order_counts_and_is_recorded_and_verified(pair: tuple[Path, Path], tmp_path: Path) -> None:
    run(pair, tmp_path / "one", "clip:norm=5", "dare:drop=0.5")
    run(pair, tmp_path / "two", "dare:drop=0.5", "clip:norm=5")
    assert file_digests(tmp_path / "one") != file_digests(tmp_path / "two")
    assert verify(tmp_path / "one", address="inline").recomputed
    recorded = read_record(tmp_path / "one")["options"]["transforms"]
    assert recorded == ["clip:norm=5.0", "dare:drop=0.5,seed=42"]
    assert [str(t) for t in parse_transforms(recorded)] == recorded
    with pytest.raises(ConfigError, match="another plan"):
        run(pair, tmp_path / "one", "dare:drop=0.5", "clip:norm=5")


@pytest.mark.parametrize(
    "text",
    [
        "ties:keep=0.2",
        "dare",
        "dare:drop=1",
        "dare:drop=0.5,drop=0.6",
        "dare:drop=0.5,seed=1.5",
        "dare:share=0.5",
        "magnitude:keep=0",
        "magnitude:keep=nan",
        "svd:rank=0",
        "clip:norm=inf",
        "clip:norm=x",
    ],
)
def test_wrong_transforms_write_nothing(pair: tuple[Path, Path], tmp_path: Path, text: str) -> None:
    with pytest.raises(ConfigError):
        run(pair, tmp_path / "out", text)
    assert not (tmp_path / "out").exists()


def test_transforms_need_finite_inputs(pair: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="finite"):
        run(pair, tmp_path / "out", "dare:drop=0.5", allow_nonfinite=True)
    tensors = load(pair[1])
    tensors["tall"][0, 0] = torch.nan
    bad = write(tmp_path / "bad", tensors)
    for text in ("clip:norm=1", "dare:drop=0.5", "magnitude:keep=0.5", "svd:rank=2"):
        with pytest.raises(ShardError, match="not finite") as caught:
            run((pair[0], bad), tmp_path / "out", text, overwrite=True)
        assert "'tall'" in str(caught.value.where)
