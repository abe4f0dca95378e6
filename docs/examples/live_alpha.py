"""Serve a pair, ask it, change alpha while it runs, ask again.

Needs ./sft and ./dpo. `serve` runs until it is ended, so it gets a process of its own.
"""

# %%
import json
import subprocess

import httpx

import expo_ray

command = ["expo-ray", "serve", "./dpo", "--initial", "./sft", "--alpha", "0.3"]
service = subprocess.Popen(
    [*command, "--allow-alpha-change", "--port", "8000", "--json"],
    stdout=subprocess.PIPE,
    text=True,
)

# %% [markdown]
# Under `--json` each event is one line; after "ready" requests are answered.

# %%
events = (json.loads(line) for line in service.stdout)
url = next(event["url"] for event in events if event["event"] == "ready")


def ask(question: str) -> None:
    """Print the answer, and which weights gave it."""
    chat = {"messages": [{"role": "user", "content": question}], "max_tokens": 16}
    response = httpx.post(f"{url}/v1/chat/completions", json=chat, timeout=60)
    answer = response.raise_for_status().json()
    print(f"{answer['model']}: {answer['choices'][0]['message']['content']!r}")


# %% [markdown]
# All replicas change or none; requests that are being answered finish first, by the old weights.

# %%
try:
    ask("Name a fruit.")
    changed = expo_ray.set_alpha(0.5, url=url)
    print("now", changed["model"])
    ask("Name a fruit.")
finally:
    service.terminate()
    service.communicate()
