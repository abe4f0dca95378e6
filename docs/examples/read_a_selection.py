"""Read what a run left: its verdict, its guards, and the answers behind them.

Needs a run directory ./run, as `select` and `expo-ray run` leave one. No model, no Ray.
"""

# %%
import json
from pathlib import Path

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
    low, high = heldout["ci_low"], heldout["ci_high"]
    print(
        f"held out: {heldout['gain']:+.3f} [{low:+.3f}, {high:+.3f}], {heldout['num_pairs']} pairs"
    )

# %% [markdown]
# Which guards stopped a candidate, and why?

# %%
for guard in selection["guards"]:
    if guard["fired"]:
        print(
            f"alpha {guard['alpha']:g}: {guard['name']} {guard['value']:.2f} > {guard['threshold']}"
        )

# %% [markdown]
# The tables are Parquet. These are the prompts on which the first reward model likes the largest
# alpha least, compared with the aligned model: read such answers before you believe a mean.

# %%
alpha = max(candidate["alpha"] for candidate in selection["candidates"])
rewards = pq.read_table(sorted((run / "rewards").iterdir())[0]).to_pylist()
reward_of = {(row["prompt_id"], row["alpha"]): row["reward"] for row in rewards}
losses = {
    prompt_id: reward_of[prompt_id, alpha] - reward_of[prompt_id, 0.0]
    for prompt_id, of_alpha in reward_of
    if of_alpha == alpha
}
responses = pq.read_table(run / "responses").to_pylist()
answer_of = {(row["prompt_id"], row["alpha"]): row["response"] for row in responses}
for prompt_id in sorted(losses, key=losses.__getitem__)[:3]:
    print(f"{losses[prompt_id]:+.2f} prompt {prompt_id}: {answer_of[prompt_id, alpha][:60]!r}")
