"""Which form of reward model a checkpoint has, read from its config before anything is loaded.

Light: no torch.
"""

from __future__ import annotations

from typing import Literal

from expo_ray.checkpoints import Checkpoint
from expo_ray.errors import CheckpointError

CheckpointKind = Literal["one-label", "gated", "pairwise"]

# Published forms whose code lives beside their weights and is never run here; by architecture.
_OWN_CODE: dict[str, CheckpointKind] = {
    "LlamaForRewardModelWithGating": "gated",
    "DebertaV2PairRM": "pairwise",
}


def checkpoint_kind(checkpoint: Checkpoint) -> CheckpointKind:
    """Return the form of a reward model.

    Raises:
        CheckpointError: It is none that can be read, or its pad token is not in its vocabulary.
    """
    for architecture in checkpoint.config.get("architectures") or ():
        if architecture in _OWN_CODE:
            return _OWN_CODE[architecture]
    labels = checkpoint.config.get("id2label")
    num_labels = checkpoint.config.get("num_labels") if labels is None else len(labels)
    if num_labels != 1:
        raise CheckpointError(
            "not a reward model with one label",
            where=f"{checkpoint.uri}/config.json, id2label",
            got="none" if num_labels is None else f"{num_labels} labels",
            expected=f"a sequence classifier with 1 label, or one of {', '.join(_OWN_CODE)}",
            hint="a language model rates as judge:URL#MODEL, the pair itself as implicit:beta=0.1",
        )
    check_pad_token(checkpoint)
    return "one-label"


def check_pad_token(checkpoint: Checkpoint) -> None:
    """Check that the pad token can be looked up.

    Raises:
        CheckpointError: It is not in the vocabulary.
    """
    text_config = checkpoint.config.get("text_config", checkpoint.config)
    pad_id, vocab_size = text_config.get("pad_token_id"), text_config.get("vocab_size")
    if pad_id is not None and vocab_size is not None and not 0 <= pad_id < vocab_size:
        raise CheckpointError(
            "the pad token of the reward model is not in its vocabulary",
            where=f"{checkpoint.uri}/config.json, pad_token_id",
            got=pad_id,
            expected=f"0 to {vocab_size - 1}",
        )
