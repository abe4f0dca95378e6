"""A machine with one GPU: weights in its memory, exactness, tokens per second, another alpha.

    python -m benchmarks.gpu

Needs neither Ray nor vLLM. Makes a Llama-shaped bfloat16 pair of 6.8B parameters with random
weights, extrapolates it in this process and generates with the transformers engine. In turns it
loads the written checkpoint, loads the pair at the same alpha, and changes alpha in the loaded
model; each time what lies in the device's memory is hashed and compared with what was written. On a
smaller model, errors of bfloat16 on the device against float32 on the CPU stand beside those of
bfloat16 on the CPU. Exits 1 where bytes differ, or errors are several times the CPU's.

`--device cpu --layers 2 --hidden 256 --check-size tiny` tries the script without a GPU. The engine
is then in float32, and both errors are the CPU's.

Needs: a GPU of 24 GB, 64 GB of memory, 45 GB of disk. Takes: made for 8 minutes, not yet timed.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expo_ray.serving.engines.transformers_engine import TransformersEngine

# Of the dependencies of expo_ray what is used here: a GPU machine may have no more than these.
MODULES = {
    "torch": "torch",
    "transformers": "transformers",
    "tokenizers": "tokenizers",
    "safetensors": "safetensors",
    "blake3": "blake3",
    "numpy": "numpy",
    "pydantic": "pydantic",
    "jinja2": "jinja2",
    "yaml": "pyyaml",
    "huggingface_hub": "huggingface_hub",
}
ALPHAS = (0.3, 0.5)
NUM_ROWS = (1, 8, 32)


def missing_packages() -> list[str]:
    """Return what has to be installed first."""
    return [package for name, package in MODULES.items() if importlib.util.find_spec(name) is None]


class Clock:
    """Seconds of what a device does, which goes on after a call has returned."""

    def __init__(self, device: str) -> None:
        self._device = device

    def of(self, work: Callable[[], object]) -> float:
        import torch

        self._wait(torch)
        started = time.perf_counter()
        work()
        self._wait(torch)
        return time.perf_counter() - started

    def _wait(self, torch: Any) -> None:
        if self._device == "cuda":
            torch.cuda.synchronize()


def show(what: str, seconds: list[float]) -> None:
    print(
        f"{what:44} {statistics.median(seconds):8.2f} s ({min(seconds):.2f} to {max(seconds):.2f})",
        flush=True,
    )


def make_pair(folder: Path, layers: int, hidden: int) -> tuple[Path, Path]:
    from benchmarks.generated_pair import write_pair
    from tests.pico import pico_tokenizer

    pair = write_pair(folder, layers, hidden)
    for side in pair:
        pico_tokenizer().save_pretrained(side)
    return pair


def tokens_per_second(
    engine: TransformersEngine, clock: Clock, num_rows: int, num_tokens: int, repeats: int
) -> None:
    """Print the engine's rate and that of `generate` of transformers, in turns."""
    import torch

    from benchmarks.device_checks import PROMPTS, chat_rows
    from expo_ray.serving.sampling import SamplingParams

    sampling = SamplingParams()
    texts = [PROMPTS[number % len(PROMPTS)] for number in range(num_rows)]
    rows = chat_rows(engine, texts, sampling, num_tokens)
    model = engine._loaded.model
    width = max(len(row.prompt_ids) for row in rows)
    ids_bt = torch.tensor([[0] * (width - len(r.prompt_ids)) + r.prompt_ids for r in rows])
    # The id 0 is that of the padding, and of nothing in these prompts.
    batch = {
        "input_ids": ids_bt.to(model.device),
        "attention_mask": (ids_bt != 0).long().to(model.device),
    }

    def ours() -> None:
        made = engine.generate(rows)
        if wrong := [one for one in made if one.error or one.completion_tokens != num_tokens]:
            sys.exit(f"FAIL: {wrong[0]}")

    def plain() -> None:
        made = model.generate(
            **batch,
            do_sample=True,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            max_new_tokens=num_tokens,
            pad_token_id=0,
        )
        if made.shape[1] != width + num_tokens:
            sys.exit(f"FAIL: {made.shape[1] - width} tokens of {num_tokens}")

    seconds: dict[Callable[[], None], list[float]] = {ours: [], plain: []}
    for number in range(repeats + 1):
        for way, taken in seconds.items():
            spent = clock.of(way)
            if number:  # the first round only warms up
                taken.append(spent)
    rates = [num_rows * num_tokens / statistics.median(taken) for taken in seconds.values()]
    print(
        f"{num_rows:3} rows of {num_tokens} tokens: engine {rates[0]:8.1f} tokens/s, "
        f"transformers alone {rates[1]:8.1f}, ratio {rates[0] / rates[1]:.2f}",
        flush=True,
    )


def switches(
    engine: TransformersEngine,
    clock: Clock,
    pair: tuple[Path, Path],
    outputs: list[tuple[Path, str]],
    repeats: int,
) -> None:
    """Print the seconds of each way to another alpha; what lies in memory is hashed each time."""
    from benchmarks.device_checks import memory_digest
    from expo_ray.checkpoints import open_checkpoint
    from expo_ray.serving.source import ModelSource

    (_, removed_digest), (written_folder, digest) = outputs
    aligned = open_checkpoint(pair[1])
    live = [ModelSource(model=str(pair[1]), initial=str(pair[0]), alpha=a) for a in ALPHAS]
    ways = {
        "load the written checkpoint": (ModelSource(model=str(written_folder)), digest),
        "load the pair, extrapolating": (live[1], digest),
        "another alpha in the loaded model": (live[0], removed_digest),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(repeats):
        for way, (source, written) in ways.items():
            seconds[way].append(clock.of(lambda source=source: engine.load(source)))
            held = memory_digest(engine._loaded.model, aligned)
            if not held == engine.weights_digest == written:
                sys.exit(f"FAIL: {way}: {held} in memory, {written} written")
    for way, taken in seconds.items():
        show(way, taken)
    print(f"PASS: memory held what was written, {repeats * len(ways)} times", flush=True)


def exactness(folder: Path, size: str, device: str) -> bool:
    """Print errors of bfloat16; return whether the device's are no larger than rounding's."""
    import torch
    from transformers import LlamaConfig
    from transformers.models.llama import LlamaForSequenceClassification

    from benchmarks.device_checks import MAX_RATIO, logit_errors, reward_errors
    from benchmarks.llama_pair import make_pair as make_llama_pair
    from tests.pico import save_model

    initial, aligned = make_llama_pair(folder, size)
    config = LlamaConfig.from_pretrained(aligned, num_labels=1, tie_word_embeddings=False)
    torch.manual_seed(0)
    classifier = LlamaForSequenceClassification(config).to(torch.bfloat16)
    reward_model = save_model(classifier, folder / "reward-model", max_shard_size="5GB")
    found = {
        "logits of the engine": logit_errors(Path(aligned), device),
        "rewards of a classifier": reward_errors(str(reward_model), device),
        "rewards of the pair": reward_errors(
            "implicit:beta=1", device, initial=initial, aligned=aligned
        ),
    }
    print("errors of bfloat16 in standard deviations of float32 on the CPU:")
    for what, errors in found.items():
        print(f"{what:28} {device} {errors.device:.4f}, cpu {errors.cpu:.4f}", flush=True)
    is_sound = all(errors.is_sound for errors in found.values())
    print(f"{'PASS' if is_sound else 'MISS'}: at most {MAX_RATIO:g} times the CPU's")
    return is_sound


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096, help="a multiple of 64")
    parser.add_argument("--tokens", type=int, default=64, help="of every generated row")
    parser.add_argument("--check-size", default="0.5b", choices=["tiny", "0.5b"])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where to work; deleted afterwards")
    options = parser.parse_args()
    if missing := missing_packages():
        sys.exit(f"not installed: pip install {' '.join(missing)}")
    started = time.perf_counter()

    import torch

    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("no CUDA device; --device cpu with small --layers and --hidden tries the script")

    from expo_ray.extrapolation import extrapolate
    from expo_ray.serving.engines.transformers_engine import TransformersEngine

    is_cuda = options.device == "cuda"
    clock = Clock(options.device)
    versions = ", ".join(f"{n} {importlib.metadata.version(n)}" for n in ("torch", "transformers"))
    name = torch.cuda.get_device_name() if is_cuda else "CPU"
    print(f"{name}, {os.cpu_count()} cores, {versions}", flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as work:
        folder = Path(work)
        pair: list[Path] = []
        seconds = clock.of(
            lambda: pair.extend(make_pair(folder / "pair", options.layers, options.hidden))
        )
        gib = sum(file.stat().st_size for file in pair[1].glob("*.safetensors")) / 2**30
        print(f"a pair of 2 x {gib:.2f} GiB, {2**30 * gib / 2e9:.2f}B, made in {seconds:.0f} s")
        outputs: list[tuple[Path, str]] = []
        for alpha in ALPHAS:
            if outputs:  # of the first one only the digest is needed, and two take much room
                shutil.rmtree(outputs[0][0])
            target = folder / f"alpha-{alpha}"
            result = extrapolate(*pair, target, alpha=alpha, address="inline")
            print(f"extrapolated to alpha {alpha} in {result.seconds:.1f} s", flush=True)
            outputs.append((target, result.outputs[0].weights_digest))
        engine = TransformersEngine(device=options.device)
        switches(engine, clock, (pair[0], pair[1]), outputs, options.repeats)
        for num_rows in NUM_ROWS:
            tokens_per_second(engine, clock, num_rows, options.tokens, options.repeats)
        if is_cuda:
            print(f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB of the GPU at the most")
        del engine
        is_sound = exactness(folder, options.check_size, options.device)
    print(f"{time.perf_counter() - started:.0f} s in all")
    return 0 if is_sound else 1


if __name__ == "__main__":
    sys.exit(main())
