from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expo_ray.errors import WorkError
from expo_ray.selection import SelectionSettings, choice, choose_alpha, sign_table, sign_workers
from expo_ray.selection.samples import SplitSamples, join_tables
from expo_ray.tables.schemas import RESPONSES_SCHEMA, REWARDS_SCHEMA
from tests import samples
from tests.selection.plain_samples import plain_join

ALPHAS = (0.0, -0.0, -0.5, 0.1, float(np.float32(0.3)), 1.0, 2.0)
NUM_PROMPTS = 120
SETTINGS = SelectionSettings(num_resamples=1000, max_error_rate=0.1)
QUESTION = "Why do the leaves of my tomato plants turn yellow at the bottom of the pots in July?"
TEXTS = (
    *(response for _, _, response in samples.PAIRS),
    *("", " ", "\n\n", None, QUESTION, "yes " * 90, "ha" * 300),
    "Of course.<|im_end|> <|im_start|>user " + QUESTION,
    "Gelbe Blätter sind am unteren Ende der Pflanze ganz normal, sobald die Früchte wachsen.",
    "植物下部的叶子变黄是很正常的现象只要果实开始生长就会这样请不要担心记得按时浇水。",
)


def made_up_run(seed: int = 0) -> tuple[pa.Table, dict[str, pa.Table]]:
    """Responses and rewards with all that a real run may hold, in no order."""
    rng = np.random.default_rng(seed)
    liked = rng.normal(0, 1, NUM_PROMPTS)
    rows: list[dict[str, Any]] = []
    for alpha in ALPHAS[:1] + ALPHAS[2:]:
        for prompt in range(NUM_PROMPTS):
            for sample in range(3):
                if rng.random() < 0.01:
                    continue  # not asked
                failed = rng.random() < 0.005
                chat = [{"role": "user", "content": rng.choice(["", "Hello?", QUESTION])}]
                if rng.random() < 0.1:
                    chat = [{"role": "system", "content": "Be kind."}, *chat]
                reward = liked[prompt] + 0.3 * alpha + rng.normal(0, 0.5)
                rows.append(
                    {
                        "prompt_id": f"prompt-{prompt}",
                        "sample": sample,
                        "split": "heldout" if prompt % 2 else "tuning",
                        "messages": [chat, None, []][rng.choice(3, p=[0.96, 0.02, 0.02])],
                        "response": None if failed else TEXTS[rng.integers(len(TEXTS))],
                        "alpha": -0.0 if alpha == 0 and rng.random() < 0.5 else alpha,
                        "weights_digest": f"digest-{alpha}",
                        "finish_reason": rng.choice(["stop", "length"], p=[0.95, 0.05]),
                        "completion_tokens": None if failed else int(rng.poisson(50 + alpha)),
                        "error": "timed out" if failed else None,
                        "reward": [None, np.nan, np.inf, reward][
                            rng.choice(4, p=[0.002, 0.001, 0.001, 0.996])
                        ],
                    }
                )
    rows = [rows[i] for i in rng.permutation(len(rows))]
    responses = pa.concat_tables(
        pa.Table.from_pylist(part, schema=RESPONSES_SCHEMA) for part in (rows[:700], rows[700:])
    )
    rewards = {}
    for name in ("scoring", "guard", "implicit:beta=0.1"):
        kept = [row for row in rows if name == "scoring" or rng.random() < 0.995]
        own = [
            {**row, "reward": None if row["reward"] is None else row["reward"] + rng.normal(0, 1)}
            for row in kept
        ]
        for row in own:
            row["reward_model"] = name
        rewards[name] = pa.Table.from_pylist(own, schema=REWARDS_SCHEMA)
    return responses, rewards


def choose(run: tuple[pa.Table, dict[str, pa.Table]], file: Path | None = None) -> str:
    responses, rewards = run
    guards = {name: table for name, table in rewards.items() if name != "scoring"}
    found = choose_alpha(
        responses, rewards["scoring"], settings=SETTINGS, guard_rewards=guards, signs_file=file
    )
    return json.dumps(found)


@pytest.mark.parametrize("seed", range(3))
def test_the_fast_join_gives_what_the_plain_one_gives(
    seed: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = responses, rewards = made_up_run(seed)
    guards = {name: table for name, table in rewards.items() if name != "scoring"}
    fast = join_tables(responses, rewards["scoring"], guards)
    plain = plain_join(responses, rewards["scoring"], guards)
    for split, expected in plain.items():
        for field in fields(SplitSamples):
            assert_same(getattr(fast[split], field.name), getattr(expected, field.name))
    fresh = choose(run, tmp_path / "signs.parquet")
    again = choose(run, tmp_path / "signs.parquet")
    monkeypatch.setattr(choice, "join_tables", plain_join)
    assert fresh == again == choose(run)
    assert any(guard["fired"] for guard in json.loads(fresh)["guards"])


def assert_same(found: object, expected: object) -> None:
    if isinstance(expected, dict):
        assert isinstance(found, dict) and found.keys() == expected.keys()
        for name in expected:
            assert_same(found[name], expected[name])
    elif isinstance(expected, np.ndarray):
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


def test_the_same_signs_come_from_worker_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sign_workers, "MIN_ROWS", 10)
    monkeypatch.setattr(sign_workers.os, "sched_getaffinity", lambda _: {0, 1})
    answers = [text or "" for text in TEXTS]
    blocks = [([QUESTION] * len(answers[i:]), answers[i:]) for i in range(6)]
    started: list[object] = []
    start = sign_workers.subprocess.Popen
    monkeypatch.setattr(
        sign_workers.subprocess,
        "Popen",
        lambda *a, **k: started.append(start(*a, **k)) or started[-1],
    )
    found = list(sign_workers.measure_blocks(blocks, num_rows=100))
    assert len(started) == 2
    for (questions, texts), signs in zip(blocks, found, strict=True):
        np.testing.assert_array_equal(signs, sign_workers.measure_texts(questions, texts))


def count_measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by every answer that is measured."""
    measured: list[str] = []
    measure = sign_workers.measure_texts

    def counted(questions: Sequence[str | None], answers: Sequence[str]) -> Any:
        measured.extend(answers)
        return measure(questions, answers)

    monkeypatch.setattr(sign_workers, "measure_texts", counted)
    return measured


def test_what_stands_is_not_measured_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "signs.parquet"
    run = responses, rewards = made_up_run()
    measured = count_measured(monkeypatch)
    first = choose(run, file)
    assert len(measured) == responses["error"].null_count
    measured.clear()
    assert choose(run, file) == first
    assert measured == []
    texts = responses["response"].to_pylist()
    fine = responses["error"].to_pylist().index(None)
    texts[fine] = "An answer that was generated again."
    place = responses.column_names.index("response")
    changed = responses.set_column(place, "response", pa.array(texts, pa.string()))
    choose((changed, rewards), file)
    assert measured == ["An answer that was generated again."]


@pytest.mark.parametrize("harm", ["cut", "flipped", "another version", "not Parquet"])
def test_a_file_that_cannot_be_trusted_is_made_anew(
    harm: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "signs.parquet"
    run = made_up_run()
    first = choose(run, file)
    whole = file.read_bytes()
    table = pq.read_table(file)
    if harm == "cut":
        file.write_bytes(whole[:-100])
    elif harm == "flipped":
        file.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    elif harm == "another version":
        zeros = pa.array(np.full(table.num_rows, 0.9))
        wrong = table.set_column(1, table.schema.field(1), zeros)
        pq.write_table(wrong.replace_schema_metadata({sign_table._VERSION: b"old"}), file)
    else:
        file.write_text("not a table")
    measured = count_measured(monkeypatch)
    assert choose(run, file) == first
    assert len(measured) == run[0]["error"].null_count
    measured.clear()
    assert choose(run, file) == first
    assert measured == []


@pytest.mark.timeout(60)
def test_workers_that_have_ended_are_told_and_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sign_workers, "MIN_ROWS", 10)
    monkeypatch.setattr(sign_workers.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(sign_workers.sys, "executable", "/bin/false")
    with pytest.raises(WorkError, match="has ended"):
        list(sign_workers.measure_blocks([(["q"], ["a"])] * 9, num_rows=100))


@pytest.mark.timeout(120)
def test_a_measurement_that_is_broken_off_leaves_no_worker() -> None:
    """Ctrl-C reaches this process alone, and what it waits for ends."""
    code = """
import os, signal, subprocess
from expo_ray.selection import sign_workers
# A shell that starts the tests in the background lets them ignore it, and so would this process.
signal.signal(signal.SIGINT, signal.default_int_handler)
sign_workers.MIN_ROWS = 1
sign_workers.os.sched_getaffinity = lambda _: {0, 1}
found = sign_workers.measure_blocks([(["q"] * 2000, ["a b c " * 200] * 2000)] * 50, num_rows=9)
next(found)
try:
    os.killpg(os.getpgrp(), signal.SIGINT)
    list(found)
except KeyboardInterrupt:
    found.close()
    children = subprocess.run(["ps", "--ppid", str(os.getpid()), "-o", "args="],
                              capture_output=True, text=True).stdout
    assert "sign_workers" not in children, children
    print("ended")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=100,
        start_new_session=True,
    )
    assert done.stdout == "ended\n", done.stderr


def test_an_unknown_question_is_told_from_any_other() -> None:
    keys = {sign_table._key(question, "x") for question in (None, "", "-", "0")}
    assert len(keys) == 4
