"""A whole laboratory, trained for a few steps on the session's Ray."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from expo_ray.checkpoints import open_checkpoint, weights_digest
from expo_ray.checkpoints.storages.folder_lock import owned_lock
from expo_ray.errors import EvaluationError
from expo_ray.lab import LabResult, LabSettings, find_lab, prepare_lab, truth_reward
from expo_ray.lab.data import eval_prompts, requests_for
from expo_ray.lab.on_policy import draw_on_policy_pairs
from expo_ray.lab.result import lab_paths
from expo_ray.lab.tasks.lists import TEMPLATES
from expo_ray.tables import read_prompts

MICRO = LabSettings(
    seed=3,
    num_eval_prompts=8,
    num_sft_examples=48,
    num_preference_pairs=80,
    preference_fraction=0.2,
    dpo_batch_size=8,
    num_reward_pairs=32,
    max_new_tokens=4,
)


class RecordingProgress:
    """Counts what every bar was told."""

    def __init__(self) -> None:
        self.bars: dict[str, list[float]] = {}

    def start(self, description: str, total: float | None = None, unit: str = "") -> _Bar:
        return _Bar(self.bars.setdefault(description, [0.0, 0.0, 0.0]))

    def message(self, text: str) -> None:
        pass


class _Bar:
    def __init__(self, record: list[float]) -> None:
        self.record = record

    def advance(self, amount: float = 1) -> None:
        self.record[0] += amount

    def set_total(self, total: float) -> None:
        self.record[1] = total

    def close(self) -> None:
        self.record[2] += 1


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lab")


@pytest.fixture(scope="module")
def shown() -> RecordingProgress:
    return RecordingProgress()


@pytest.fixture(scope="module")
def lab(cache: Path, shown: RecordingProgress, ray_cluster: str) -> LabResult:
    with contextlib.chdir(cache.parent):  # not the folder in which Ray was started
        return prepare_lab(cache.name, MICRO, address=ray_cluster, progress=shown)


def models(lab: LabResult) -> list[Path]:
    assert lab.guard_reward_model is not None
    return [lab.initial, lab.aligned, lab.reward_model, lab.guard_reward_model]


def test_models_are_ordinary_checkpoints_of_several_shards(lab: LabResult) -> None:
    for folder in models(lab):
        checkpoint = open_checkpoint(folder)
        assert len(checkpoint.files) >= 3
        assert {ref.dtype for ref in checkpoint.tensors.values()} == {"F32"}
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer.chat_template
        assert checkpoint.config["vocab_size"] == len(tokenizer)
    initial, aligned = open_checkpoint(lab.initial), open_checkpoint(lab.aligned)
    shapes = [{n: (t.dtype, t.shape) for n, t in c.tensors.items()} for c in (initial, aligned)]
    assert shapes[0] == shapes[1]
    assert AutoModelForCausalLM.from_pretrained(lab.aligned).config.tie_word_embeddings


def test_alignment_moves_every_weight_matrix(lab: LabResult) -> None:
    initial = AutoModelForCausalLM.from_pretrained(lab.initial).state_dict()
    aligned = AutoModelForCausalLM.from_pretrained(lab.aligned).state_dict()
    for name, weight in initial.items():
        change = (aligned[name] - weight).norm() / weight.norm()
        assert 0 < change < 0.1, name


def test_reward_models_are_classifiers_independent_of_each_other(lab: LabResult) -> None:
    assert lab.guard_reward_model is not None
    rewards = []
    for folder in (lab.reward_model, lab.guard_reward_model):
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        assert model.config.num_labels == 1
        rewards.append(model(torch.tensor([[1, 4, 50, 60, 2]])).logits.item())
    assert rewards[0] != rewards[1]


def test_prompts_are_the_held_out_ones(lab: LabResult) -> None:
    prompts = read_prompts(lab.prompts)
    asked = [row["prompt"] for row in eval_prompts(MICRO)]
    assert [p.messages[-1]["content"] for p in prompts] == asked


def test_record_has_the_facts(lab: LabResult) -> None:
    record = json.loads(lab.record.read_text())
    assert record["settings"]["seed"] == 3
    facts = record["models"]
    assert facts["initial"]["num_steps"] == 3
    assert facts["aligned"]["num_pairs"] == 16
    assert facts["aligned"]["num_steps"] == 2
    assert facts["reward-model"]["num_steps"] == 2
    for name in ("reward-model", "guard-reward-model"):
        assert 0 < facts[name]["heldout_accuracy"] < 1
    for name in ("initial", "aligned"):
        assert -5 <= facts[name]["mean_truth"] <= 7


def test_progress_counts_every_step(lab: LabResult, shown: RecordingProgress) -> None:
    assert len(shown.bars) == 4
    assert shown.bars["Training initial"][:2] == [3, 3]
    assert all(num_closed >= 1 for _, _, num_closed in shown.bars.values())


def test_a_killed_run_continues_with_the_same_bytes(
    lab: LabResult, cache: Path, ray_cluster: str
) -> None:
    before = {folder: weights_digest(open_checkpoint(folder)) for folder in models(lab)}
    inodes = {folder: folder.stat().st_ino for folder in models(lab)}
    # As after a kill while aligned was being saved.
    lab.record.unlink()
    (lab.folder / "facts" / "aligned.json").unlink()
    (lab.folder / ".aligned.partial").mkdir()
    assert find_lab(cache, MICRO) is None
    shown = RecordingProgress()
    again = prepare_lab(cache, MICRO, address=ray_cluster, progress=shown)
    assert again == lab
    assert list(shown.bars) == ["Training aligned"]
    assert {folder: weights_digest(open_checkpoint(folder)) for folder in models(lab)} == before
    kept = [folder for folder in models(lab) if folder.stat().st_ino == inodes[folder]]
    assert kept == [lab.initial, lab.reward_model, lab.guard_reward_model]
    assert not (lab.folder / ".aligned.partial").exists()


def test_a_finished_laboratory_needs_no_ray(lab: LabResult, cache: Path) -> None:
    # Any work would need Ray, which this address refuses.
    assert prepare_lab(cache, MICRO, address="inline") == lab


def test_a_second_process_waits_and_finds_it_finished(
    lab: LabResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(lab.folder, lab_paths(tmp_path, MICRO).folder))
    (folder / lab.record.name).unlink()
    shown = RecordingProgress()
    waits = threading.Event()
    monkeypatch.setattr(shown, "message", lambda text: waits.set() if "waiting" in text else None)
    with ThreadPoolExecutor(1) as other, owned_lock(folder / ".lock"):
        # Any work would need Ray, which this address refuses.
        found = other.submit(prepare_lab, tmp_path, MICRO, address="inline", progress=shown)
        assert waits.wait(60)
        assert not found.done()
        shutil.copy(lab.record, folder)
    assert found.result() == lab_paths(tmp_path, MICRO)


@pytest.mark.slow
def test_a_guard_is_trained_on_answers_of_the_pair(
    lab: LabResult, tmp_path: Path, ray_cluster: str
) -> None:
    settings = MICRO.model_copy(update={"guard_on_policy_share": 0.5, "guard_hidden_size": 64})
    assert lab.guard_reward_model is not None
    again = lab_paths(tmp_path, settings)
    # Of the same seed and settings in all but the guard, so that only this is left to train.
    shutil.copytree(lab.folder, again.folder)
    again.record.unlink()
    (again.folder / "facts" / "guard-reward-model.json").unlink()
    shown = RecordingProgress()
    assert prepare_lab(tmp_path, settings, address=ray_cluster, progress=shown) == again
    assert list(shown.bars) == ["Training guard-reward-model"]
    widths = [open_checkpoint(x.guard_reward_model).config["hidden_size"] for x in (lab, again)]
    assert widths == [128, 64]


def test_answers_of_the_pair_are_compared_on_the_guards_own_prompts(lab: LabResult) -> None:
    settings = MICRO.model_copy(update={"num_guard_pairs": 20, "guard_on_policy_share": 0.5})
    pairs = draw_on_policy_pairs(settings, lab.initial, lab.aligned)
    assert pairs == draw_on_policy_pairs(settings, lab.initial, lab.aligned)
    assert 0 < len(pairs) <= 10
    own = requests_for(settings, "guard_reward_model")
    prompts = {request.text(template) for request in own for template in TEMPLATES}
    for pair in pairs:
        assert pair.prompt in prompts
        chosen, rejected = (truth_reward(pair.messages(), a) for a in (pair.chosen, pair.rejected))
        assert pair.agrees == (chosen > rejected)


def test_a_failed_training_names_its_model(tmp_path: Path, ray_cluster: str) -> None:
    settings = MICRO.model_copy(update={"guard_reward_model": False})
    # The facts cannot be written where a file stands in the way of their folder.
    facts = lab_paths(tmp_path, settings).folder / "facts"
    facts.parent.mkdir()
    facts.touch()
    with pytest.raises(EvaluationError) as caught:
        prepare_lab(tmp_path, settings, address=ray_cluster)
    assert caught.value.where in ("initial", "reward-model", "aligned")
    assert str(caught.value.got).startswith("NotADirectoryError")
    assert find_lab(tmp_path, settings) is None
