"""The output folder: what is written, what is refused, what a second run does."""

from __future__ import annotations

import fcntl
import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from expo_ray.checkpoints import iter_tensors, open_checkpoint, weights_digest
from expo_ray.errors import CheckpointError, ConfigError, RequestError, ShardError
from expo_ray.extrapolation import extrapolate, inspect_checkpoint, verify, writing
from expo_ray.extrapolation.outputs import targets as targets_module
from expo_ray.extrapolation.outputs.record import read_record
from expo_ray.extrapolation.planning.plan import build_plan, natural_key, parse_size
from tests.extrapolation.synthetic import closed_form, file_digests, load, noise, same_bits, write

Pair = tuple[Path, Path]


def run(pair: Pair, output: Path, alpha: object = 0.3, **options: object):
    return extrapolate(*pair, output, alpha=alpha, address="inline", **options)


@pytest.fixture
def pair(pico_pair: Pair, tmp_path: Path) -> Pair:
    """Copies that a test may change."""
    return tuple(Path(shutil.copytree(p, tmp_path / p.name)) for p in pico_pair)


def test_transformers_loads_the_result_and_computes_its_logits(
    pico_pair: Pair, tmp_path: Path
) -> None:
    result = run(pico_pair, tmp_path / "out", alpha=0.5, max_shard_size="30KB")
    assert result.loading is not None
    assert result.loading.status == "loads"
    model, info = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", output_loading_info=True, dtype=torch.float32
    )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.chat_template
    by_hand = AutoModelForCausalLM.from_pretrained(pico_pair[1], dtype=torch.float32)
    before, after = load(pico_pair[0]), load(pico_pair[1])
    state = {n: closed_form(before[n], after[n], 0.5).float() for n in after}
    by_hand.load_state_dict(state, strict=False)
    tokens = tokenizer("Hello there", return_tensors="pt")
    with torch.no_grad():
        logits, expected = model(**tokens).logits, by_hand(**tokens).logits
    assert torch.equal(logits, expected)
    untouched = AutoModelForCausalLM.from_pretrained(pico_pair[1], dtype=torch.float32)
    with torch.no_grad():
        assert not torch.allclose(logits, untouched(**tokens).logits)


def test_layout_record_and_sidecars(pair: Pair, tmp_path: Path) -> None:
    initial, aligned = pair
    (aligned / "LICENSE").write_text("free")
    (aligned / "optimizer.pt").write_bytes(b"big")
    (aligned / "README.md").write_text("card of aligned")
    (aligned / "layers" / "fast").mkdir(parents=True)
    (aligned / "layers" / "fast" / "attention.py").write_text("code")
    result = run(pair, tmp_path / "out", max_shard_size="20KB")
    out = tmp_path / "out"
    names = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    shards = [n for n in names if n.endswith(".safetensors")]
    assert shards == [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    carried = ("LICENSE", "tokenizer.json", "chat_template.jinja", "generation_config.json")
    for name in (*carried, "layers/fast/attention.py"):
        assert (out / name).read_bytes() == (aligned / name).read_bytes()
    # The dtype did not change, so the config is the very same file.
    assert (out / "config.json").read_bytes() == (aligned / "config.json").read_bytes()
    assert "optimizer.pt" not in names
    assert ".expo_ray" not in names
    record = read_record(out)
    assert {e["name"] for e in record["files"]} == set(names) - {"expo_ray.json"}
    assert all((out / e["name"]).stat().st_size == e["bytes"] for e in record["files"])
    assert record["files_not_carried"] == ["optimizer.pt"]
    assert "not carried to the output: optimizer.pt" in result.notes
    assert record["initial"]["files"] == open_checkpoint(initial).identity()
    assert record["alpha"] == 0.3
    assert record["weights_digest"] == weights_digest(open_checkpoint(out))
    assert record["weights_digest"] == result.outputs[0].weights_digest
    card = (out / "README.md").read_text()
    # Folders are no ids of the Hub.
    assert "base_model" not in card
    for words in ("`aligned`", "`initial`", "alpha = 0.3", "2404.16792"):
        assert words in card
    assert str(tmp_path) not in card
    with safe_open(out / shards[0], "pt") as file:
        assert file.metadata() == {"format": "pt"}
    summary = inspect_checkpoint(out).as_dict()
    assert summary["extrapolated"]["alpha"] == 0.3
    assert summary["num_parameters"] == open_checkpoint(aligned).num_parameters
    json.dumps(result.as_dict(), allow_nan=False)


def test_statistics_are_those_of_the_tensors(pico_pair: Pair, tmp_path: Path) -> None:
    run(pico_pair, tmp_path / "out", alpha=[0.3, 1e-4])
    before, after = load(pico_pair[0]), load(pico_pair[1])
    for alpha in (0.3, 1e-4):
        out = tmp_path / "out" / f"alpha-{alpha:g}"
        written = load(out)
        for name, facts in read_record(out)["tensors"].items():
            found = facts["statistics"]
            one, two = before[name].double(), after[name].double()
            delta = two - one
            cosine = torch.nn.functional.cosine_similarity(one.flatten(), two.flatten(), dim=0)
            lost = (written[name] == after[name]) & (delta != 0)
            assert found["initial_norm"] == pytest.approx(float(one.norm()), rel=1e-5)
            assert found["delta_norm"] == pytest.approx(float(delta.norm()), rel=1e-5)
            assert found["cosine"] == pytest.approx(float(cosine), abs=1e-5)
            assert found["max_abs_delta"] == pytest.approx(float(delta.abs().max()), rel=1e-6)
            assert found["share_lost_to_rounding"] == pytest.approx(
                float(lost.double().mean()), abs=1e-9
            )
            assert found["identical"] is False
            assert found["num_nonfinite"] == 0


def test_one_alpha_does_not_go_beside_several(pico_pair: Pair, tmp_path: Path) -> None:
    run(pico_pair, tmp_path / "out", alpha=[0.3, 0.5])
    with pytest.raises(ConfigError, match="one checkpoint per alpha") as caught:
        run(pico_pair, tmp_path / "out", alpha=0.3)
    assert caught.value.got == "alpha-0.3, alpha-0.5"
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for n in range(7):
        (foreign / f"{n}.txt").touch()
    with pytest.raises(ConfigError, match="not made by expo_ray") as caught:
        run(pico_pair, foreign, alpha=0.3)
    assert caught.value.got == "0.txt, 1.txt, 2.txt, 3.txt, 4.txt and 2 more"


def test_several_alphas_come_from_one_read(pico_pair: Pair, tmp_path: Path) -> None:
    alphas = [0.1, 0.3, 1.0, -0.5]
    together = run(pico_pair, tmp_path / "all", alpha=alphas)
    inputs = sum(open_checkpoint(p).num_bytes for p in pico_pair)
    assert together.bytes_read == inputs
    assert together.bytes_written == sum(o.num_bytes for o in together.outputs)
    for alpha in alphas:
        run(pico_pair, tmp_path / "one" / str(alpha), alpha=alpha)
        name = f"alpha-{alpha:g}"
        assert file_digests(tmp_path / "all" / name) == file_digests(tmp_path / "one" / str(alpha))


def test_second_run_writes_nothing(pico_pair: Pair, tmp_path: Path) -> None:
    run(pico_pair, tmp_path / "out", alpha=[0.3, 0.5])
    times = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    again = run(pico_pair, tmp_path / "out", alpha=[0.3, 0.5])
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == times
    assert [o.status for o in again.outputs] == ["skipped", "skipped"]
    assert (again.bytes_read, again.bytes_written, again.num_tasks) == (0, 0, 0)
    assert all(o.weights_digest for o in again.outputs)


def test_a_further_alpha_leaves_the_finished_ones_alone(pico_pair: Pair, tmp_path: Path) -> None:
    run(pico_pair, tmp_path / "out", alpha=[0.3, 0.5])
    again = run(pico_pair, tmp_path / "out", alpha=[0.3, 0.5, 0.7])
    assert [o.status for o in again.outputs] == ["skipped", "skipped", "written"]


def test_another_plan_is_refused_and_replaced_on_demand(pico_pair: Pair, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(pico_pair, out, alpha=0.3, max_shard_size="20KB")
    before = file_digests(out)
    for options in ({"alpha": 0.5}, {"max_shard_size": "40KB"}, {"output_dtype": "float32"}):
        with pytest.raises(ConfigError, match="another plan") as caught:
            run(pico_pair, out, **{"max_shard_size": "20KB", **options})
        assert "alpha 0.3" in str(caught.value)
        assert file_digests(out) == before
    run(pico_pair, out, alpha=0.5, overwrite=True)
    run(pico_pair, tmp_path / "fresh", alpha=0.5)
    # Shards of the old layout are gone: a loader could have taken them.
    assert file_digests(out) == file_digests(tmp_path / "fresh")


def test_nothing_of_another_model_stays_beside_the_new_weights(
    pair: Pair, pico_pair: Pair, tmp_path: Path
) -> None:
    (pair[1] / "tokenizer.model").write_bytes(b"pieces")
    (pair[1] / "code").mkdir()
    (pair[1] / "code" / "model.py").write_text("code")
    out = tmp_path / "out"
    run(pair, out)
    stale = ["adapter_config.json", "tekken.json", "additional_chat_templates/tool.jinja"]
    (out / "additional_chat_templates").mkdir()
    for name in stale:
        (out / name).write_text("{}")
    kept = ["notes.txt", "train.py"]
    for name in kept:
        (out / name).write_text("by hand")
    run(pico_pair, out, overwrite=True)
    run(pico_pair, tmp_path / "fresh")
    assert file_digests(out).keys() == {*file_digests(tmp_path / "fresh"), *kept}


def test_a_record_cannot_name_files_elsewhere(pico_pair: Pair, tmp_path: Path) -> None:
    out, outside = tmp_path / "out", tmp_path / "outside"
    outside.write_text("not ours")
    out.mkdir()
    names = ["../outside", str(outside), "", "a/../../outside"]
    (out / "expo_ray.json").write_text(json.dumps({"files": [{"name": n} for n in names]}))
    run(pico_pair, out, overwrite=True)
    assert outside.read_text() == "not ours"


def test_an_unfinished_result_of_another_plan_says_which(
    pico_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "assemble", _fail)
    with pytest.raises(ShardError):
        run(pico_pair, tmp_path / "out", 0.3)
    with pytest.raises(ConfigError, match="unfinished") as caught:
        run(pico_pair, tmp_path / "out", 0.5)
    assert f"alpha 0.3 of {pico_pair[0]} and {pico_pair[1]}" in str(caught.value.got)
    assert "overwrite=True" in str(caught.value.hint)


def _fail(*_: object, **__: object) -> str:
    raise OSError("no space left on the device")


def test_changed_input_makes_it_another_plan(pair: Pair, tmp_path: Path) -> None:
    run(pair, tmp_path / "out")
    file = pair[1] / open_checkpoint(pair[1]).files[0]
    file.write_bytes(file.read_bytes())
    with pytest.raises(ConfigError, match="another plan"):
        run(pair, tmp_path / "out")


def test_changed_sidecar_makes_it_another_plan(pair: Pair, tmp_path: Path) -> None:
    run(pair, tmp_path / "out")
    (pair[1] / "chat_template.jinja").write_text("{{ messages }}")
    with pytest.raises(ConfigError, match="another plan"):
        run(pair, tmp_path / "out")


def test_damaged_result_is_not_taken_for_complete(pico_pair: Pair, tmp_path: Path) -> None:
    run(pico_pair, tmp_path / "out")
    (tmp_path / "out" / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="changed afterwards"):
        run(pico_pair, tmp_path / "out")


def test_foreign_folders_files_and_inputs_are_never_written_to(pair: Pair, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("x")
    digests = [file_digests(p) for p in pair]
    for output, words in (
        (foreign, "not empty"),
        (tmp_path / "file", "is a file"),
        (pair[1], "lies in aligned"),
        (pair[0] / "deep" / "inside", "lies in initial"),
        ("ftp://bucket/out", "not supported"),
    ):
        for overwrite in (False, True):
            if overwrite and output == foreign:
                continue
            with pytest.raises(ConfigError, match=words):
                run(pair, output, overwrite=overwrite)
    assert [file_digests(p) for p in pair] == digests
    assert [p.name for p in foreign.iterdir()] == ["notes.txt"]


def test_wrong_requests_write_nothing(pico_pair: Pair, tmp_path: Path) -> None:
    initial, aligned = pico_pair
    for first, second, alpha in (
        (tmp_path / "none", aligned, 0.3),
        ("", aligned, 0.3),
        (initial, tmp_path / "none", 0.3),
        (initial, aligned, float("nan")),
        (initial, aligned, "x"),
        (initial, aligned, []),
        (initial, aligned, [0.3, 0.3]),
    ):
        with pytest.raises(RequestError) as caught:
            extrapolate(first, second, tmp_path / "out", alpha=alpha, address="inline")
        assert caught.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_an_empty_output_is_not_the_working_directory(
    pico_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"of somebody")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RequestError, match="empty"):
        extrapolate(*pico_pair, "", alpha=0.3, overwrite=True, address="inline")
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]


def _drop_shard(aligned: Path) -> None:
    next(aligned.glob("*.safetensors")).unlink()


def _truncate(aligned: Path) -> None:
    path = next(aligned.glob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:-5])


def _lengthen_header(aligned: Path) -> None:
    path = next(aligned.glob("*.safetensors"))
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def _point_outside(aligned: Path) -> None:
    path = aligned / "model.safetensors.index.json"
    path.write_text(path.read_text().replace('"model-00001', '"../model-00001'))


def _empty_index(aligned: Path) -> None:
    (aligned / "model.safetensors.index.json").write_text("")


def _quantize(aligned: Path) -> None:
    config = json.loads((aligned / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq"}
    (aligned / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "damage",
    [_drop_shard, _truncate, _lengthen_header, _point_outside, _empty_index, _quantize],
)
@pytest.mark.parametrize("side", [0, 1])
def test_damaged_inputs_write_nothing(
    pair: Pair, tmp_path: Path, damage: Callable[[Path], None], side: int
) -> None:
    damage(pair[side])
    with pytest.raises(CheckpointError) as caught:
        run(pair, tmp_path / "out")
    assert caught.value.exit_code == 2
    assert str(pair[side].name) in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_disk_space_is_checked_before(
    pico_pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets_module, "SPARE_BYTES", 2**60)
    with pytest.raises(ConfigError, match="not enough room"):
        run(pico_pair, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_dry_run_plans_and_writes_nothing(pico_pair: Pair, tmp_path: Path) -> None:
    planned = run(pico_pair, tmp_path / "out", alpha=[0.3, 1], max_shard_size="20KB", dry_run=True)
    assert list(tmp_path.iterdir()) == []
    done = run(pico_pair, tmp_path / "out", alpha=[0.3, 1], max_shard_size="20KB")
    assert planned.num_tasks == done.num_tasks == 3
    assert planned.plan["bytes_in"] == done.bytes_read
    assert planned.plan["bytes_out"] == done.bytes_written
    assert [o.status for o in planned.outputs] == ["planned", "planned"]
    again = run(pico_pair, tmp_path / "out", alpha=[0.3, 1], max_shard_size="20KB", dry_run=True)
    assert (again.num_tasks, again.plan["bytes_out"]) == (0, 0)


def test_two_runs_cannot_share_an_output(pico_pair: Pair, tmp_path: Path) -> None:
    work = tmp_path / "out" / ".expo_ray"
    work.mkdir(parents=True)
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another run is writing"):
            run(pico_pair, tmp_path / "out")
    run(pico_pair, tmp_path / "out")


def test_a_refusal_gives_back_the_folders_that_were_claimed_before(
    pico_pair: Pair, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    work = out / "alpha-0.5" / ".expo_ray"
    work.mkdir(parents=True)
    with (work / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(ConfigError, match="another run is writing"):
            run(pico_pair, out, alpha=[0.3, 0.5, 0.7])
        assert [p.relative_to(out).as_posix() for p in out.rglob("*")] == [
            "alpha-0.5",
            "alpha-0.5/.expo_ray",
            "alpha-0.5/.expo_ray/lock",
        ]


def test_an_old_result_stays_whole_until_the_work_begins(pico_pair: Pair, tmp_path: Path) -> None:
    from expo_ray.extrapolation.outputs.work_folder import (
        begin_output,
        claimed_folder,
        leave_folder,
    )

    out = tmp_path / "out"
    run(pico_pair, out)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    with claimed_folder(out, "digest", overwrite=True) as token:
        assert {path: path.stat().st_mtime_ns for path in before} == before
        leave_folder(out)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    with claimed_folder(out, "digest", overwrite=True) as token:
        begin_output(out, "digest", token, overwrite=True)
        assert not (out / "expo_ray.json").exists()
        assert not list(out.glob("*.safetensors"))


def test_task_of_an_older_run_is_fenced_off(pico_pair: Pair, tmp_path: Path) -> None:
    from expo_ray.extrapolation.outputs.work_folder import begin_output, claimed_folder
    from expo_ray.extrapolation.shards.engine import run_shard
    from expo_ray.extrapolation.shards.tasks import WRITE, ShardOutput, shard_task

    out = tmp_path / "out"
    plan = build_plan(*pico_pair)
    with claimed_folder(out, "digest", overwrite=False) as old_token:
        begin_output(out, "digest", old_token, overwrite=False)
    with claimed_folder(out, "digest", overwrite=False) as token:
        begin_output(out, "digest", token, overwrite=False)
        stale = ShardOutput(alpha=1, folder=str(out), plan_digest="digest", run_token=old_token)
        task = shard_task(plan, plan.shards[0], WRITE, (stale,))
        with pytest.raises(ShardError, match="taken over"):
            run_shard(task)
    assert not list(out.glob("*.safetensors"))


def test_input_that_changes_after_planning_is_noticed(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = pair[0] / open_checkpoint(pair[0]).files[0]
    planned = writing.plan_tasks

    def plan_then_change(*args: object, **kwargs: object):
        tasks = planned(*args, **kwargs)
        file.write_bytes(file.read_bytes()[:-2])
        return tasks

    monkeypatch.setattr(writing, "plan_tasks", plan_then_change)
    with pytest.raises(ShardError, match="changed since"):
        run(pair, tmp_path / "out")
    assert not (tmp_path / "out" / "expo_ray.json").exists()


def test_config_states_what_was_written(tmp_path: Path) -> None:
    tensors = [{"w": noise((4, 4), torch.bfloat16, seed)} for seed in (1, 2)]
    settings = {"torch_dtype": "bfloat16", "text_config": {"dtype": "bfloat16", "x": None}}
    initial = write(tmp_path / "i", tensors[0], **settings)
    aligned = write(tmp_path / "a", tensors[1], **settings)
    run((initial, aligned), tmp_path / "out", output_dtype="float32")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    original = json.loads((aligned / "config.json").read_text())
    assert config["torch_dtype"] == config["text_config"]["dtype"] == "float32"
    assert list(config) == list(original)
    assert config["text_config"]["x"] is None
    # Where every tensor keeps its own dtype, parts of two dtypes keep what is said of them.
    parts = [
        {**t, "vision_tower.w": noise((2, 2), torch.float32, 3 + i)} for i, t in enumerate(tensors)
    ]
    settings["vision_config"] = {"torch_dtype": "float32"}
    mixed = [write(tmp_path / f"m{i}", part, **settings) for i, part in enumerate(parts)]
    run((mixed[0], mixed[1]), tmp_path / "out1")
    config = json.loads((tmp_path / "out1" / "config.json").read_text())
    assert config["vision_config"]["torch_dtype"] == "float32"
    assert config["torch_dtype"] == config["text_config"]["dtype"] == "bfloat16"
    # A config that says another thing than the weights is corrected too.
    wide = write(tmp_path / "wide", {"w": tensors[1]["w"].float()}, torch_dtype="bfloat16")
    run((initial, wide), tmp_path / "out2")
    assert json.loads((tmp_path / "out2" / "config.json").read_text())["torch_dtype"] == "float32"


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_infinity_and_nan_in_a_config_are_read_and_written_as_by_transformers(
    tmp_path: Path, dtype: str
) -> None:
    special = {"time_step_limit": [0.0, math.inf], "router_jitter": math.nan, "low": -math.inf}
    tensors = {"w": noise((4, 4), torch.float16, 1)}
    initial = write(tmp_path / "initial", tensors, torch_dtype="float16", **special)
    other = {"w": noise((4, 4), torch.float16, 2)}
    aligned = write(tmp_path / "aligned", other, torch_dtype="float16", **special)
    (aligned / "generation_config.json").write_text('{"time_limit": Infinity}')
    out = tmp_path / "out"
    extrapolate(initial, aligned, out, alpha=0.3, output_dtype=dtype, address="inline")
    written = (out / "config.json").read_text()
    assert re.sub(r"\s|float(16|32)", "", written) == re.sub(
        r"\s|float(16|32)", "", (aligned / "config.json").read_text()
    )
    assert '"time_limit": Infinity' in (out / "generation_config.json").read_text()
    verify(out, address="inline")


def test_layouts_of_the_two_sides_do_not_matter(tmp_path: Path) -> None:
    before = {f"layers.{i}.w": noise((40, 3), torch.bfloat16, i) for i in range(12)}
    after = {name: t + 0.01 for name, t in before.items()}
    results = []
    for first, second in ((1, 1), (5, 2), (3, 12)):
        folder = tmp_path / f"{first}-{second}"
        initial = write(folder / "initial", before, num_shards=first)
        aligned = write(folder / "aligned", after, num_shards=second)
        run((initial, aligned), folder / "out", max_shard_size="1KB")
        results.append(file_digests(folder / "out"))
        names = [name for _, shard in sorted(load_by_file(folder / "out")) for name in shard]
        assert names == sorted(before, key=natural_key)
    assert results[0] == results[1] == results[2]


def load_by_file(folder: Path) -> list[tuple[str, list[str]]]:
    checkpoint = open_checkpoint(folder)
    files: dict[str, list[tuple[int, str]]] = {}
    for ref in checkpoint.tensors.values():
        files.setdefault(ref.file, []).append((ref.offset_bytes, ref.name))
    return [(file, [name for _, name in sorted(refs)]) for file, refs in files.items()]


def test_shards_stay_below_the_limit_and_big_tensors_stand_alone(tmp_path: Path) -> None:
    sizes = [100, 900, 100, 3000, 50, 50]
    tensors = [
        {f"t{i}": noise((n,), torch.float32, seed + i) for i, n in enumerate(sizes)}
        for seed in (0, 50)
    ]
    pair = write(tmp_path / "i", tensors[0]), write(tmp_path / "a", tensors[1])
    run(pair, tmp_path / "out", max_shard_size=4400)
    files = [names for _, names in sorted(load_by_file(tmp_path / "out"))]
    assert files == [["t0", "t1", "t2"], ["t3"], ["t4", "t5"]]
    assert all(
        same_bits(tensor, load(tmp_path / "out")[name])
        for name, tensor in iter_tensors(open_checkpoint(tmp_path / "out"))
    )


def test_sizes_and_natural_order() -> None:
    assert [parse_size(s) for s in ("5GB", "1.5 kb", "2GiB", 7)] == [5 * 10**9, 1500, 2**31, 7]
    names = ["h.10.a", "h.2.b", "h.2.a", "a", "h"]
    assert sorted(names, key=natural_key) == ["a", "h", "h.2.a", "h.2.b", "h.10.a"]


def test_overwrite_removes_nothing_behind_a_link(pico_pair: Pair, tmp_path: Path) -> None:
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.jinja").write_text("mine")
    extrapolate(*pico_pair, out, alpha=0.3, address="inline")
    (out / "additional_chat_templates").symlink_to(elsewhere)
    record = json.loads((out / "expo_ray.json").read_text())
    record["files"].append({"name": "additional_chat_templates/mine.jinja"})
    (out / "expo_ray.json").write_text(json.dumps(record))
    extrapolate(*pico_pair, out, alpha=0.5, overwrite=True, address="inline")
    assert (elsewhere / "mine.jinja").read_text() == "mine"
