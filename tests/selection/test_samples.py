"""What is measured of responses that hold thoughts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from expo_ray.selection.candidates import measure_candidates
from expo_ray.selection.measured_files import read_responses, read_rewards
from expo_ray.selection.samples import join_tables
from expo_ray.selection.settings import SelectionSettings
from expo_ray.selection.table_keys import distinct
from tests.selection.plain_samples import plain_join
from tests.selection.tables import make_rows, responses_of, rewards_of


def test_answers_alone_are_measured_and_a_thought_alone_is_cut_off() -> None:
    rows = make_rows({0.0: [1.0] * 6, 0.5: [1.0] * 6}, num_tuning=4, tokens={0.5: 100})
    responses, rewards = responses_of(rows), rewards_of(rows)
    is_candidate = [row["alpha"] == 0.5 for row in rows]
    last = len(rows) - 3  # a tuning prompt of the candidate
    answers = [" " if i == last else row["response"] for i, row in enumerate(rows)]
    told = (
        responses.set_column(3, "response", pa.array(answers))
        .append_column("thought", pa.array([(t and "hm") or None for t in is_candidate]))
        .append_column("messages", pa.nulls(len(rows)))
        .append_column("thought_tokens", pa.array([80 * t for t in is_candidate]))
    )
    found = join_tables(told, rewards, {})["tuning"]
    assert found.tokens.tolist() == [[20.0] * 4] * 2
    assert found.thought_tokens.tolist() == [[0.0] * 4, [80.0] * 4]
    assert found.truncated.tolist() == [[0.0] * 4, [0.0, 0.0, 0.0, 1.0]]
    plain = plain_join(told, rewards, {})["tuning"]
    for name in ("tokens", "thought_tokens", "truncated", "repetition"):
        np.testing.assert_array_equal(getattr(found, name), getattr(plain, name))
    candidates, _ = measure_candidates(found, SelectionSettings(), {})
    figures = [(c.mean_tokens, c.mean_thought_tokens, c.length_ratio) for c in candidates]
    assert figures == [(20.0, 0.0, 1.0), (20.0, 80.0, 1.0)]

    untold = join_tables(responses, rewards, {})["tuning"]
    assert untold.tokens[1].tolist() == [100.0] * 4
    assert np.isnan(untold.thought_tokens).all()
    assert measure_candidates(untold, SelectionSettings(), {})[0][0].mean_thought_tokens is None


def test_columns_of_few_texts_give_the_same_samples(tmp_path: Path) -> None:
    rows = make_rows({0.0: [1.0, None, 2.0], 0.5: [3.0, 1.0, 0.0]}, num_tuning=2)
    rows[1]["error"], rows[4]["finish_reason"] = "timed out", "length"
    responses = responses_of(rows).append_column("messages", pa.nulls(len(rows)))
    thoughts = pa.array(["hm" if row["alpha"] else None for row in rows])
    responses = responses.append_column("thought", thoughts)
    responses = responses.append_column("thought_tokens", pa.array([7] * len(rows)))
    files = {}
    for name, table in (("responses", responses), ("rewards", rewards_of(rows))):
        files[name] = [tmp_path / f"{name}-{i}.parquet" for i in (0, 3)]
        for file, start in zip(files[name], (0, 3), strict=True):
            pq.write_table(table.slice(start, 3), file)
    lean = read_responses(files["responses"])
    assert lean["thought"].to_pylist() == [None] * 3 + [""] * 3, "whether there is one"
    found = join_tables(lean, read_rewards(files["rewards"]), {})
    expected = join_tables(responses, rewards_of(rows), {})
    for split in ("tuning", "heldout"):
        for name in ("rewards", "tokens", "thought_tokens", "truncated", "present", "repetition"):
            one, other = getattr(found[split], name), getattr(expected[split], name)
            np.testing.assert_array_equal(one, other)
    filtered = lean.filter(pa.array([row["split"] == "tuning" for row in rows]))
    assert distinct(filtered["split"])[0] == ["tuning"]
    values, places = distinct(lean["error"])
    assert [values[i] for i in places] == [row["error"] for row in rows]
