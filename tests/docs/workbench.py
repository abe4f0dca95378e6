"""A folder with what the documentation speaks of: ./sft, ./dpo, ./rm, p.jsonl and their kin."""

from __future__ import annotations

import json
from pathlib import Path

from tests.pico import save_pair, save_reward_model

PROMPTS = ["Name a fruit.", "Write one short sentence about rain.", "What is two plus two?"]


def make_workbench(folder: Path) -> Path:
    """Make the folder; the models are tiny and real.

    The pair has a context of 4096 tokens, so that no example ends for want of it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    initial, aligned = save_pair(folder, max_position_embeddings=4096)
    initial.rename(folder / "sft")
    aligned.rename(folder / "dpo")
    save_reward_model(folder / "rm")
    save_reward_model(folder / "rm2", seed=8)
    rows = [{"prompt": f"{prompt} ({i})"} for i in range(4) for prompt in PROMPTS]
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder
