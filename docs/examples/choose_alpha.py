"""Choose alpha by evidence, and read the verdict.

Needs ./sft, ./dpo, a reward model ./rm, and p.jsonl with a `prompt` in each line. Starts a local
Ray; `address="auto"` takes the cluster that is there.
"""

# %%
import expo_ray

done = expo_ray.select(
    "./sft",
    "./dpo",
    prompts="p.jsonl",
    reward_models=["./rm", "implicit:beta=0.1"],  # the first scores, the second guards
    alphas=[0.1, 0.3, 0.5],
    settings={"sampling": {"max_tokens": 32}},
    output="run",
)

# %% [markdown]
# Every candidate answered the same tuning prompts with the same seeds. The gain is its reward minus
# that of alpha 0, prompt by prompt.

# %%
selection = done["selection"]
for candidate in selection["candidates"]:
    low, high = candidate["gain_ci_low"], candidate["gain_ci_high"]
    print(f"alpha {candidate['alpha']:<4g} gain {candidate['gain']:+.3f} [{low:+.3f}, {high:+.3f}]")

# %% [markdown]
# "keep-aligned" is a frequent and honest verdict, above all with a dozen prompts.

# %%
print(selection["verdict"], selection["best_alpha"])
print(selection["reason"])
print("report:", done["report"])
