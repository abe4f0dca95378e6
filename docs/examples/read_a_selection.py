"""Read what a run left: its verdict, its guards, and the answers behind them.

Needs a run directory ./run, as `select` and `expo-ray run` leave one. No model, no Ray.
"""

# %%
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

run = Path("run")
selection = json.loads((run / "selection.json").read_text())
print(selection["verdict"], "alpha", selection["best_alpha"])
print(selection["reason"])

# %% [markdown]
# The gain on held-out prompts is the one to report: no candidate was chosen on them.

# %%
heldout = selection["heldout"]
if heldout:
    gain, low, high = (heldout[key] for key in ("gain", "ci_low", "ci_high"))
    print(f"{heldout['num_pairs']} held-out prompts: {gain:+.3f} [{low:+.3f}, {high:+.3f}]")

# %% [markdown]
# Which guards stopped a candidate, and why?

# %%
for guard in selection["guards"]:
    if guard["fired"]:
        print(f"alpha {guard['alpha']:g}: {guard['reason']}")

# %% [markdown]
# The tables are Parquet, one file per alpha. Which prompts does the first reward model like least
# under the largest alpha, compared with the aligned model? Read such answers before you believe a
# mean.


# %%
def rows_of(folder: Path) -> list[dict]:
    """Return the rows of all tables of a folder."""
    return pa.concat_tables(map(pq.read_table, sorted(folder.glob("*.parquet")))).to_pylist()


alpha = max(candidate["alpha"] for candidate in selection["candidates"])
scored = rows_of(min((run / "rewards").iterdir()))
reward_of = {(row["prompt_id"], row["alpha"]): row["reward"] for row in scored}
losses = {
    prompt_id: reward_of[prompt_id, alpha] - reward_of[prompt_id, 0.0]
    for prompt_id, of_alpha in reward_of
    if of_alpha == alpha
}
answer_of = {
    (row["prompt_id"], row["alpha"]): row["response"] for row in rows_of(run / "responses")
}
for prompt_id in sorted(losses, key=losses.__getitem__)[:3]:
    print(f"{losses[prompt_id]:+.2f} prompt {prompt_id}: {answer_of[prompt_id, alpha][:60]!r}")
