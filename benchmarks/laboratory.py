"""Shows what the laboratory's models do along alpha: reward, guard reward, hidden truth, length.

    python -m benchmarks.laboratory --seed 0

Extrapolates in memory and generates with plain transformers, so that it checks the laboratory and
not the pipeline. The defaults of the laboratory were chosen by looking at seeds 0 and 1 only.

Needs: two CPU cores. Takes: a few minutes, most of them training, which is kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from expo_ray.lab import LabResult, LabSettings, prepare_lab, truth_reward
from expo_ray.tables import read_prompts

ALPHAS = (-1, 0, 0.3, 0.5, 1, 2, 3, 5, 8, 12)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--preference-fraction", type=float, default=0.1)
    parser.add_argument("--cache", type=Path, default=Path("runs/lab"))
    parser.add_argument("--alpha", type=float, nargs="+", default=ALPHAS)
    arguments = parser.parse_args()
    settings = LabSettings(seed=arguments.seed, preference_fraction=arguments.preference_fraction)
    lab = prepare_lab(arguments.cache, settings)
    torch.set_num_threads(1)
    curves = {alpha: measure(lab, settings, alpha) for alpha in sorted({0.0, *arguments.alpha})}
    base = curves[0.0]
    for alpha, columns in curves.items():
        cells = [
            f"{name} {values.mean():.2f} ({interval(values - base[name])})"
            for name, values in columns.items()
        ]
        print(f"alpha {alpha:>4}: {'; '.join(cells)}")


def measure(lab: LabResult, settings: LabSettings, alpha: float) -> dict[str, np.ndarray]:
    """Return one value per prompt for each measure of the model at this alpha."""
    tokenizer = AutoTokenizer.from_pretrained(lab.aligned)
    initial = AutoModelForCausalLM.from_pretrained(lab.initial).state_dict()
    model = AutoModelForCausalLM.from_pretrained(lab.aligned).eval()
    aligned = model.state_dict()
    model.load_state_dict({k: aligned[k] + alpha * (aligned[k] - initial[k]) for k in aligned})
    chats = [list(prompt.messages) for prompt in read_prompts(lab.prompts)]
    inputs = tokenizer.apply_chat_template(
        chats, add_generation_prompt=True, padding=True, return_dict=True, return_tensors="pt"
    )
    torch.manual_seed(1)
    with torch.inference_mode():
        output = model.generate(
            **inputs,
            do_sample=True,
            temperature=0.7,
            top_p=0.9,
            top_k=50,
            max_new_tokens=settings.max_new_tokens,
        )[:, inputs["input_ids"].shape[1] :]
    answers = tokenizer.batch_decode(output, skip_special_tokens=True)
    columns = {
        "truth": np.array([truth_reward(c, a) for c, a in zip(chats, answers, strict=True)]),
        "tokens": (output != tokenizer.pad_token_id).sum(dim=1).numpy().astype(float),
    }
    full = [[*c, {"role": "assistant", "content": a}] for c, a in zip(chats, answers, strict=True)]
    for name, folder in (("reward", lab.reward_model), ("guard", lab.guard_reward_model)):
        if folder is not None:
            columns[name] = score(folder, full)
    return columns


def score(folder: Path, chats: list) -> np.ndarray:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = tokenizer.apply_chat_template(
        chats, padding=True, padding_side="right", return_dict=True, return_tensors="pt"
    )
    with torch.inference_mode():
        return model(**inputs).logits[:, 0].numpy().astype(float)


def interval(differences: np.ndarray) -> str:
    """Return the mean of paired differences with its 95% bootstrap interval."""
    rng = np.random.default_rng(0)
    means = differences[rng.integers(len(differences), size=(2000, len(differences)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    return f"{differences.mean():+.2f} [{low:+.2f}, {high:+.2f}]"


if __name__ == "__main__":
    main()
