"""What lies in a device's memory and what it computes, against the files and the CPU in float32.

How exact bfloat16 has to be is not a number that we could choose: it depends on the model. So the
measure is the CPU in bfloat16. Both devices round to the same format in the same places, only the
order of sums differs; a device whose error is several times as large does something else.
Shapes: N rows, T steps, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from expo_ray.checkpoints import Checkpoint, WeightsDigest
from expo_ray.checkpoints.tensors import TORCH_DTYPES
from expo_ray.rewards import load_reward_model
from expo_ray.serving.engines.interface import Row
from expo_ray.serving.engines.transformers_engine import TransformersEngine
from expo_ray.serving.sampling import SamplingParams
from expo_ray.serving.source import ModelSource
from expo_ray.tables.prompts import Message

MAX_RATIO = 3.0
"""Of the two errors, each a root mean square over many values: nine times the variance."""
GREEDY = SamplingParams(temperature=0)
PROMPTS = ["hi", "Why is the sky blue? " * 4, "x", "List three fruits.", "?" * 90, "Once upon a"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Errors:
    """Root mean squares of errors against float32 on the CPU, in standard deviations of it."""

    device: float
    """bfloat16 on the device."""
    cpu: float
    """bfloat16 on the CPU."""

    @property
    def is_sound(self) -> bool:
        """Whether the device is about as exact as the CPU is in the same dtype."""
        return self.cpu > 0 and self.device <= MAX_RATIO * self.cpu


def memory_digest(model: Any, checkpoint: Checkpoint) -> str:
    """Return the weights digest of what lies in a model's memory.

    Args:
        model: On any device; in the checkpoint's dtypes, or in float32, which holds them exactly.
        checkpoint: Whose names and dtypes the digest has; its weights are not read.

    Raises:
        ValueError: The memory holds values that the checkpoint's dtype cannot.
    """
    digest, places = WeightsDigest(), model.state_dict()
    for name, ref in checkpoint.tensors.items():
        held = places[name]
        tensor = held.to(TORCH_DTYPES[ref.dtype])
        if not torch.equal(tensor.to(held.dtype), held):
            raise ValueError(f"{name} holds values that are no {ref.dtype}")
        digest.add(name, tensor, ref.dtype, held.shape)
    return digest.written()


def chat_rows(
    engine: TransformersEngine, texts: Sequence[str], params: SamplingParams, max_tokens: int
) -> list[Row]:
    """Return rows that end by their number of tokens alone."""
    return [
        Row(
            prompt_ids=engine.encode_chat([Message(role="user", content=text)]),
            params=params,
            seed=number,
            max_tokens=max_tokens,
            ignore_eos=True,
        )
        for number, text in enumerate(texts)
    ]


def logit_errors(folder: Path, device: str, *, max_tokens: int = 16) -> Errors:
    """Compare the logits by which the engine generates: one padded batch, from its cache.

    Against them stands a forward pass of each row alone, without padding or cache, over the tokens
    that the engine has chosen.

    Args:
        folder: A checkpoint in bfloat16.
        device: "cpu" or "cuda".
        max_tokens: Steps of every row.
    """
    engine = _loaded(folder, device)
    model = _in_bfloat16(engine._loaded.model)
    steps_nv: list[torch.Tensor] = []
    hook = model.register_forward_hook(
        lambda _model, _args, output: steps_nv.append(output.logits[:, -1].float().cpu())
    )
    rows = chat_rows(engine, PROMPTS, GREEDY, max_tokens)
    engine.generate(rows)
    hook.remove()
    made_ntv = torch.stack(steps_nv, dim=1)
    if made_ntv.shape[1] != max_tokens:
        raise ValueError(f"{made_ntv.shape[1]} steps for {max_tokens} tokens")
    chosen_nt = made_ntv.argmax(dim=2)[:, :-1].tolist()
    reference = _loaded(folder, "cpu")._loaded.model

    def alone() -> torch.Tensor:
        found_tv = []
        for row, chosen in zip(rows, chosen_nt, strict=True):
            ids_1t = torch.tensor([row.prompt_ids + chosen])
            with torch.inference_mode():
                logits_tv = reference(input_ids=ids_1t).logits[0].float()
            found_tv.append(logits_tv[len(row.prompt_ids) - 1 :])
        return torch.stack(found_tv)

    exact_ntv = alone()
    _in_bfloat16(reference)
    return _errors(made_ntv, alone(), exact_ntv)


def reward_errors(
    spec: str, device: str, *, initial: str | None = None, aligned: str | None = None
) -> Errors:
    """Compare the rewards of chats of many lengths, in the batches of `score`.

    Args:
        spec: As for `load_reward_model`.
        device: "cpu" or "cuda".
        initial: Of the pair of an implicit reward.
        aligned: Of the pair of an implicit reward.
    """
    chats = [
        [Message(role="user", content=prompt), Message(role="assistant", content=answer * count)]
        for prompt in PROMPTS[:4]
        for answer in ("yes ", "a b", "Because of light")
        for count in (1, 2, 5)
    ]

    def rewards(where: str, dtype: str) -> torch.Tensor:
        model = load_reward_model(spec, initial=initial, aligned=aligned, device=where, dtype=dtype)
        scores = model.score(chats)
        if wrong := next((score.error for score in scores if score.error), None):
            raise ValueError(wrong)
        return torch.tensor([score.reward for score in scores])

    on_cpu = rewards("cpu", "bfloat16")
    on_device = on_cpu if device == "cpu" else rewards(device, "bfloat16")
    return _errors(on_device, on_cpu, rewards("cpu", "float32"))


def _loaded(folder: Path, device: str) -> TransformersEngine:
    engine = TransformersEngine(device=device)
    engine.load(ModelSource(model=str(folder)))
    return engine


def _in_bfloat16(model: Any) -> Any:
    # Parameters alone: rotary frequencies stay exact, as where bfloat16 is loaded.
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    return model


def _errors(device: torch.Tensor, cpu: torch.Tensor, exact: torch.Tensor) -> Errors:
    def share(got: torch.Tensor) -> float:
        return float((got - exact).square().mean().sqrt() / exact.std())

    return Errors(device=share(device), cpu=share(cpu))
