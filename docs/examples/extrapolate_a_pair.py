"""Write an extrapolated checkpoint, prove that it is right, and ask it something.

Needs ./sft and ./dpo. Takes no GPU, and no Ray: everything happens in this process.
"""

# %% [markdown]
# What lies there? Only headers are read, so this takes a moment whatever the size.

# %%
import expo_ray

facts = expo_ray.inspect_checkpoint("./dpo").as_dict()
print(f"{facts['num_parameters']:,} parameters in {facts['num_shards']} shards: {facts['dtypes']}")

# %% [markdown]
# Two alphas from one read of the inputs; each gets a folder. Run it again: nothing is done twice.

# %%
result = expo_ray.extrapolate("./sft", "./dpo", "./sweep", alpha=[0.3, 0.5], address="inline")
for output in result.outputs:
    print(output.path, output.status, output.weights_digest)

# %% [markdown]
# `verify` computes every tensor again from the recorded inputs and compares the bits. It raises
# `VerifyError`, with file and tensor, where one differs.

# %%
verified = expo_ray.verify("./sweep/alpha-0.3", address="inline")
print(f"{verified.num_tensors} tensors are the formula, bit for bit")

# %% [markdown]
# The folder is an ordinary checkpoint.

# %%
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("./sweep/alpha-0.3")
model = AutoModelForCausalLM.from_pretrained("./sweep/alpha-0.3")
chat = [{"role": "user", "content": "Name a fruit."}]
prompt = tokenizer.apply_chat_template(
    chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
)
answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True))
