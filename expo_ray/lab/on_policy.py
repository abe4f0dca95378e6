"""Preferences between answers that the pair itself wrote, at many alphas.

Data of writers holds no text as extrapolated models write it. A reward model that judges them is
trained on some of their own answers too, labelled like all others: what one does in practice once
a judge is found to like what it never saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from expo_ray.lab.data import Pair, label_pair, random_source, requests_for
from expo_ray.lab.settings import LabSettings
from expo_ray.tables import Message

ALPHAS = (0.0, 0.3, 1.0, 2.0, 4.0, 8.0, 14.0, 25.0)
"""From the aligned model to far beyond its useful range."""
_BATCH_SIZE = 256


def draw_on_policy_pairs(settings: LabSettings, initial: Path, aligned: Path) -> list[Pair]:
    """Sample answers to prompts of the guard reward model alone and label pairs of them.

    Args:
        settings: Says how many pairs.
        initial: The checkpoint before alignment.
        aligned: The aligned one.

    Returns:
        The labelled pairs: two alphas, one prompt. None where the settings ask for none.
    """
    num_pairs = settings.num_on_policy_pairs
    if num_pairs == 0:
        return []
    rng = random_source(settings, "on-policy-pairs")
    texts = [
        request.text(template)
        for request in requests_for(settings, "guard_reward_model")
        for template in settings.lab_task.templates
    ]
    # About one pair per answer: pairs of the same two alphas would teach little more.
    num_prompts = min(len(texts), -(-num_pairs // len(ALPHAS)))
    prompts = [texts[i] for i in rng.permutation(len(texts))[:num_prompts]]
    answers = _answers(settings, initial, aligned, prompts)
    pairs: list[Pair] = []
    # Tied answers are no pair, so the number is reached in all but degenerate models.
    for _ in range(20 * num_pairs):
        if len(pairs) == num_pairs:
            break
        i = int(rng.integers(num_prompts))
        first, second = rng.choice(len(ALPHAS), size=2, replace=False)
        pair = label_pair(settings, rng, prompts[i], answers[first][i], answers[second][i])
        if pair is not None:
            pairs.append(pair)
    return pairs


def _answers(
    settings: LabSettings, initial: Path, aligned: Path, prompts: Sequence[str]
) -> list[list[str]]:
    """Return the answers by alpha and prompt."""
    tokenizer = AutoTokenizer.from_pretrained(aligned)
    before = AutoModelForCausalLM.from_pretrained(initial, dtype=torch.float32).state_dict()
    model = AutoModelForCausalLM.from_pretrained(aligned, dtype=torch.float32).eval()
    after = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    chats: list[list[Message]] = [[{"role": "user", "content": prompt}] for prompt in prompts]
    answers = []
    for alpha in ALPHAS:
        model.load_state_dict({k: after[k] + alpha * (after[k] - before[k]) for k in after})
        purpose = f"on-policy-sampling/{alpha:g}"
        answers.append(sample_answers(settings, model, tokenizer, chats, purpose=purpose))
    return answers


@torch.inference_mode()
def sample_answers(
    settings: LabSettings,
    model: Any,
    tokenizer: PreTrainedTokenizerFast,
    chats: Sequence[Sequence[Message]],
    *,
    purpose: str,
) -> list[str]:
    """Sample one answer to each chat.

    Args:
        settings: Seed and length limit.
        model: A model in evaluation mode.
        tokenizer: Its tokenizer.
        chats: Chats that end with the user's turn.
        purpose: Which of the seeds.
    """
    torch.manual_seed(settings.derive_seed(purpose))
    answers: list[str] = []
    for start in range(0, len(chats), _BATCH_SIZE):
        inputs = tokenizer.apply_chat_template(
            chats[start : start + _BATCH_SIZE],
            add_generation_prompt=True,
            padding=True,
            return_dict=True,
            return_tensors="pt",
        )
        output = model.generate(
            **inputs,
            do_sample=True,
            temperature=0.7,
            top_p=0.9,
            top_k=50,
            max_new_tokens=settings.max_new_tokens,
        )
        fresh = output[:, inputs["input_ids"].shape[1] :]
        answers += tokenizer.batch_decode(fresh, skip_special_tokens=True)
    return answers
