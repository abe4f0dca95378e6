from __future__ import annotations

import pyarrow as pa

from expo_ray.selection import SelectionSettings, choose_alpha
from tests.selection import tables


def test_answers_that_no_check_could_read_are_counted_apart() -> None:
    rewards = {0.0: [1.0] * 40, 0.5: [1.0] * 30 + [0.0] * 10}
    rows = [
        {**row, "reward_model": "check:number"} for row in tables.make_rows(rewards, num_tuning=20)
    ]
    wrong = [row for row in rows if row["reward"] == 0]
    for number, row in enumerate(wrong):
        row["unreadable"] = "no number" if number < 7 else None
    schema = tables.REWARDS.append(pa.field("unreadable", pa.string()))
    found = choose_alpha(
        tables.responses_of(rows),
        pa.Table.from_pylist(rows, schema=schema),
        settings=SelectionSettings(num_resamples=1000),
    )
    none, some = found["unreadable"]
    assert none == {"guard": None, "reward_model": "check:number", "alpha": 0.0,
                    "num_answers": 40, "num_unreadable": 0, "lacks": {}}  # fmt: skip
    assert (some["num_unreadable"], some["lacks"]) == (7, {"no number": 7})
    assert found["warnings"][0] == (
        "check:number could not read all answers, which count as wrong: 7 of 40 at alpha 0.5 "
        "(no number)"
    )
