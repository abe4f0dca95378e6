"""Ask whether a pair is fit for extrapolation before anything is spent on it.

Needs ./sft and ./dpo. Reads both once.
"""

# %%
import expo_ray

diagnosis = expo_ray.diagnose("./sft", "./dpo", address="inline")
print("fit" if diagnosis.fit else "not fit")
for warning in diagnosis.warnings:
    print("-", warning)

# %% [markdown]
# How large is the step, and where? Relative delta is the norm of delta divided by that of INITIAL.

# %%
print(f"whole model: {diagnosis.total['relative_delta']:.4f}")
for name, group in diagnosis.groups.items():
    print(f"{name:>12}: {group['relative_delta']:.4f}")

# %% [markdown]
# In a program, stop here where the pair is unfit: `diagnose(..., strict=True)` raises `WorkError`.
