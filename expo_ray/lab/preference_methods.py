"""The ways to align on preferences that TRL offers, one record each.

All learn from the same pairs in as many steps. TRL's imports stay inside: naming a method is light.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from expo_ray.lab.data import Pair, random_source
from expo_ray.lab.settings import LabSettings

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer

Arguments = Mapping[str, Any]
MakeTrainer = Callable[
    [LabSettings, "PreTrainedModel", "PreTrainedTokenizerFast", Sequence[Pair], Arguments],
    "Trainer",
]
"""Takes settings, model, tokenizer, pairs, and arguments that go before the method's own."""


def _dpo(
    settings: LabSettings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[Pair],
    arguments: Arguments,
) -> Trainer:
    own = {"beta": settings.dpo_beta, "per_device_train_batch_size": settings.dpo_batch_size}
    return dpo_trainer(model, tokenizer, pairs, {**own, **arguments})


def _ipo(
    settings: LabSettings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[Pair],
    arguments: Arguments,
) -> Trainer:
    return _dpo(settings, model, tokenizer, pairs, {"loss_type": ["ipo"], **arguments})


def _simpo(
    settings: LabSettings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[Pair],
    arguments: Arguments,
) -> Trainer:
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    own = {
        "loss_type": "simpo",
        "cpo_alpha": 0.0,
        # Of the authors' ranges (beta 2 to 2.5, gamma 0.3 to 1.6) round ones.
        "beta": 2.0,
        "simpo_gamma": 1.0,
        "per_device_train_batch_size": settings.dpo_batch_size,
    }
    return CPOTrainer(
        model=model,
        args=CPOConfig(**{**own, **arguments}),
        train_dataset=_preferences(pairs),
        processing_class=tokenizer,
    )


def _kto(
    settings: LabSettings,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[Pair],
    arguments: Arguments,
) -> Trainer:
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    rows = [
        {
            "prompt": pair.messages(),
            "completion": [{"role": "assistant", "content": answer}],
            "label": label,
        }
        for pair in pairs
        for answer, label in ((pair.chosen, True), (pair.rejected, False))
    ]
    # Its trainer goes through the rows in their order: two answers to a prompt must not be
    # neighbours, each other's baseline.
    order = random_source(settings, "kto-order").permutation(len(rows))
    own = {
        "beta": settings.dpo_beta,
        "per_device_train_batch_size": 2 * settings.dpo_batch_size,
        "train_sampling_strategy": "sequential",
    }
    return KTOTrainer(
        model=model,
        args=KTOConfig(**{**own, **arguments}),
        train_dataset=Dataset.from_list([rows[i] for i in order]),
        processing_class=tokenizer,
    )


def dpo_trainer(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    pairs: Sequence[Pair],
    arguments: Arguments,
) -> Trainer:
    """Return TRL's trainer for DPO, or a loss of its family.

    Args:
        model: Where training starts.
        tokenizer: Its tokenizer.
        pairs: The preferences.
        arguments: Of `DPOConfig`.
    """
    from trl import DPOConfig, DPOTrainer

    return DPOTrainer(
        model=model,
        args=DPOConfig(**arguments),
        train_dataset=_preferences(pairs),
        processing_class=tokenizer,
    )


def _preferences(pairs: Sequence[Pair]) -> Dataset:
    from datasets import Dataset

    rows = [
        {
            "prompt": pair.messages(),
            "chosen": [{"role": "assistant", "content": pair.chosen}],
            "rejected": [{"role": "assistant", "content": pair.rejected}],
        }
        for pair in pairs
    ]
    return Dataset.from_list(rows)


METHODS: Mapping[str, MakeTrainer] = {
    "dpo": _dpo,  # arXiv 2305.18290
    "ipo": _ipo,  # arXiv 2310.12036
    "kto": _kto,  # arXiv 2402.01306
    "simpo": _simpo,  # arXiv 2405.14734
}
"""By the name that an experiment gives."""
