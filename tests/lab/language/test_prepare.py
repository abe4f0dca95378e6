"""The laboratory of a language model, with a pico model in the place of the real one."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from expo_ray.checkpoints import open_checkpoint, weights_digest
from expo_ray.errors import EvaluationError
from expo_ray.lab.experiments.kind import Where
from expo_ray.lab.experiments.language import LANGUAGE
from expo_ray.lab.language import pairs, prepare
from expo_ray.lab.language.prepare import prepare_language
from expo_ray.lab.language.result import LanguageResult, find_language, language_paths
from expo_ray.lab.language.settings import LanguageSettings
from expo_ray.lab.language.source import checkpoint_path
from expo_ray.tables import read_prompts, read_table
from expo_ray.tables.preferences import read_preferences
from tests.lab.test_prepare import RecordingProgress
from tests.pico import save_pair

MICRO = LanguageSettings(
    seed=3,
    engine="transformers",
    fractions=(0.5,),
    num_preference_prompts=40,
    num_reward_prompts=20,
    num_eval_prompts=6,
    num_samples=3,
    max_tokens=16,
    dpo_batch_size=4,
    dpo_learning_rate=1e-3,
    reward_batch_size=4,
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache whose language model is a pico one."""
    folder = tmp_path_factory.mktemp("language")
    initial, _ = save_pair(folder / "made", max_position_embeddings=1024)
    initial.rename(checkpoint_path(folder))
    return folder


@pytest.fixture(scope="module", autouse=True)
def _a_truth_that_differs() -> Iterator[None]:
    """What an untrained model writes keeps to no constraint, or by chance to all alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairs, "truth_of", lambda check, prompt, text: len(text) % 2)
        yield


@pytest.fixture(scope="module")
def shown() -> RecordingProgress:
    return RecordingProgress()


@pytest.fixture(scope="module")
def lab(cache: Path, shown: RecordingProgress, ray_cluster: str) -> LanguageResult:
    with contextlib.chdir(cache.parent):  # not the folder in which Ray was started
        return prepare_language(cache.name, MICRO, address=ray_cluster, progress=shown)


def test_all_weights_are_trained_in_float32(lab: LanguageResult) -> None:
    initial = AutoModelForCausalLM.from_pretrained(lab.initial).state_dict()
    aligned = AutoModelForCausalLM.from_pretrained(lab.aligned[0.5]).state_dict()
    for name, weight in initial.items():
        assert not torch.equal(aligned[name], weight), name
    assert {ref.dtype for ref in open_checkpoint(lab.aligned[0.5]).tensors.values()} == {"F32"}


def test_reward_models_are_independent_of_each_other(lab: LanguageResult) -> None:
    chat = torch.tensor([[1, 3, 50, 60, 2]])
    rewards = []
    for folder in (lab.reward_model, lab.guard_reward_model):
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        assert model.config.num_labels == 1
        rewards.append(model(chat).logits.item())
    assert rewards[0] != rewards[1]


def test_the_record_has_the_facts_of_all_models(
    lab: LanguageResult, shown: RecordingProgress
) -> None:
    record = json.loads(lab.record.read_text())
    assert set(record["models"]) == {"aligned-0.5", "reward-model", "guard-reward-model"}
    for name, facts in record["models"].items():
        assert facts["num_steps"] == -(-facts["num_pairs"] // 4)
        assert shown.bars[f"Training {name}"][:2] == [facts["num_steps"]] * 2
    assert 0 < record["models"]["aligned-0.5"]["num_pairs"] <= 20
    assert 0 <= record["models"]["reward-model"]["heldout_accuracy"] <= 1


def test_pairs_are_a_preference_file(lab: LanguageResult) -> None:
    record = json.loads(lab.record.read_text())
    made = read_preferences(lab.folder / "pairs-reward_model.jsonl")
    assert len(made) == record["models"]["reward-model"]["num_pairs"]


def test_evaluation_prompts_carry_what_is_checked(lab: LanguageResult) -> None:
    for path in (lab.prompts, lab.other_prompts):
        prompts = read_prompts(path)
        assert len(prompts) == 6
        assert all(set(each.checked) == {"constraints"} for each in prompts)
    assert lab.prompts.read_text() != lab.other_prompts.read_text()


def test_more_shares_train_what_is_missing_alone(
    lab: LanguageResult, cache: Path, ray_cluster: str
) -> None:
    before = {path: weights_digest(open_checkpoint(path)) for path in lab.aligned.values()}
    answers = read_table(lab.answers).num_rows
    more = MICRO.model_copy(update={"fractions": (0.5, 1.0)})
    assert find_language(cache, more) is None
    shown = RecordingProgress()
    again = prepare_language(cache, more, address=ray_cluster, progress=shown)
    assert [name for name in shown.bars if name.startswith("Training")] == ["Training aligned-1"]
    assert {path: weights_digest(open_checkpoint(path)) for path in before} == before
    assert read_table(lab.answers).num_rows == answers + 20 * 3
    facts = json.loads(again.record.read_text())["models"]
    assert set(facts) == {"aligned-0.5", "aligned-1", "reward-model", "guard-reward-model"}
    assert facts["aligned-1"]["num_pairs"] > facts["aligned-0.5"]["num_pairs"]
    # Both are finished, whichever is asked for.
    for settings in (MICRO, more):
        assert prepare_language(cache, settings, address="inline").folder == lab.folder


def test_the_experiment_tells_of_a_finished_laboratory(lab: LanguageResult, cache: Path) -> None:
    where = Where(output=cache, address="inline", progress=RecordingProgress())
    told = LANGUAGE.run(MICRO, where)
    assert told["folder"] == str(lab.folder)
    assert {row["model"] for row in told["models"]} >= {"aligned-0.5", "reward-model"}


def test_answers_without_a_pair_are_told(
    cache: Path, monkeypatch: pytest.MonkeyPatch, ray_cluster: str
) -> None:
    settings = MICRO.model_copy(update={"seed": 4, "num_reward_prompts": 1})
    monkeypatch.setattr(prepare, "make_pairs", lambda *_: [None])
    with pytest.raises(EvaluationError, match="no prompt has two answers") as caught:
        prepare_language(cache, settings, address=ray_cluster)
    assert caught.value.where == "reward_model"
    assert not language_paths(cache, settings).record.exists()
