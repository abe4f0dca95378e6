import json
import logging
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from expo_ray.rewards import CachedRewardModel, RewardScore, load_reward_model
from expo_ray.rewards.interface import Chat, References
from expo_ray.rewards.score_cache import ScoreCache
from expo_ray.tables import Message
from tests.pico import pico_tokenizer


class Counting:
    """Scores by length and counts what it is asked."""

    name, revision, settings, needs_reference = "counting", "r1", "template float32", False

    def __init__(self) -> None:
        self.num_scored = 0

    def score(
        self, chats: Sequence[Chat], references: References | None = None
    ) -> list[RewardScore]:
        self.num_scored += len(chats)
        return [
            RewardScore.failed("bad") if chat[-1]["content"] == "bad" else RewardScore(
                reward=len(chat[-1]["content"]) / 7 + len((references or [""])[0] or ""), tokens=3
            )
            for chat in chats
        ]  # fmt: skip


def chat(answer: str, prompt: str = "q") -> list[Message]:
    return [Message(role="user", content=prompt), Message(role="assistant", content=answer)]


def test_nothing_is_scored_twice_and_scores_come_back_to_the_bit(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "scores.sqlite"
    model = Counting()
    cached = CachedRewardModel(model, ScoreCache(path))
    chats = [chat("one"), chat("three"), chat("one"), chat("bad")]
    first = cached.score(chats)
    assert model.num_scored == 3
    assert [score.reward for score in first] == [3 / 7, 5 / 7, 3 / 7, None]

    later = Counting()
    again = CachedRewardModel(later, ScoreCache(path))
    assert again.score([*chats, chat("one", prompt="another")])[:4] == first
    assert later.num_scored == 2, "the failure and the new prompt"
    assert again.num_cached == 3

    for changed in ("revision", "settings"):
        other = Counting()
        setattr(other, changed, "2")
        CachedRewardModel(other, ScoreCache(path)).score([chat("one")])
        assert other.num_scored == 1, changed


@pytest.mark.parametrize("file", ["tokenizer.json", "chat_template.jinja"])
def test_whatever_decides_how_a_text_is_read_is_part_of_the_key(
    pico_reward_model: Path, tmp_path: Path, file: str
) -> None:
    usual = load_reward_model(str(pico_reward_model))
    again = load_reward_model(str(pico_reward_model))
    folder = shutil.copytree(pico_reward_model, tmp_path / "rm")
    text = (folder / file).read_text()
    numbers = pico_tokenizer().get_vocab()
    a, b = (f'"{letter}": {numbers[letter]}' for letter in "ab")
    swapped = text.replace(a, f'"a": {numbers["b"]}').replace(b, f'"b": {numbers["a"]}')
    changed = swapped.replace("'role'", "'content'")
    assert changed != text
    (folder / file).write_text(changed)
    other = load_reward_model(str(folder))
    assert other.revision == usual.revision
    assert other.settings != usual.settings == again.settings


def test_the_implicit_reward_names_both_configs(
    pico_pair: tuple[Path, Path], tmp_path: Path
) -> None:
    initial, aligned = pico_pair
    usual = load_reward_model("implicit:beta=1", initial=str(initial), aligned=str(aligned))
    for side in (0, 1):
        pair = [str(initial), str(aligned)]
        folder = shutil.copytree(pair[side], tmp_path / str(side))
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 1e-3}))
        pair[side] = str(folder)
        other = load_reward_model("implicit:beta=1", initial=pair[0], aligned=pair[1])
        assert other.revision == usual.revision
        assert other.settings != usual.settings


def test_a_reference_counts_where_it_is_looked_at(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path / "s.sqlite")
    for needs_reference, num_scored in ((False, 1), (True, 2)):
        model = Counting()
        model.needs_reference, model.revision = needs_reference, str(needs_reference)
        cached = CachedRewardModel(model, cache)
        scores = [cached.score([chat("a")], [reference])[0].reward for reference in ("x", "xyz")]
        assert model.num_scored == num_scored
        assert (scores[0] == scores[1]) is not needs_reference


def test_the_score_of_a_part_of_a_chat_is_not_remembered(tmp_path: Path) -> None:
    cache = ScoreCache(tmp_path / "s.sqlite")
    cache.remember({"whole": RewardScore(reward=1.0, tokens=2)})
    cache.remember({"cut": RewardScore(reward=1.0, tokens=2, truncated=True)})
    assert list(cache.find(["whole", "cut"])) == ["whole"]


def test_a_damaged_cache_does_not_stop_the_work(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "s.sqlite"
    path.write_bytes(b"this is no database" * 100)
    model = Counting()
    with caplog.at_level(logging.WARNING):
        [score] = CachedRewardModel(model, ScoreCache(path)).score([chat("one")])
    assert score.reward == 3 / 7
    assert str(path) in caplog.text


def test_several_processes_write_at_once(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    code = (
        "import sys\nfrom pathlib import Path\n"
        "from expo_ray.rewards import RewardScore\n"
        "from expo_ray.rewards.score_cache import ScoreCache\n"
        "cache = ScoreCache(Path(sys.argv[1]))\n"
        "for i in range(50):\n"
        "    for name in (sys.argv[2], 'shared'):\n"
        "        cache.remember({f'{name}-{i}': RewardScore(reward=i / 3, tokens=i)})\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", code, str(path), str(n)])
        for n in range(3)
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    names = ("0", "1", "2", "shared")
    found = ScoreCache(path).find([f"{name}-{i}" for name in names for i in range(50)])
    assert len(found) == 200
    assert found["shared-7"] == RewardScore(reward=7 / 3, tokens=7)
