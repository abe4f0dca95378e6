"""What the config of a reward model must say, read before anything is loaded. Light: no torch."""

from __future__ import annotations

from expo_ray.checkpoints import Checkpoint
from expo_ray.errors import CheckpointError


def check_classifier_config(checkpoint: Checkpoint) -> None:
    """Let a sequence classifier with one label pass.

    Raises:
        CheckpointError: It is another kind of model, or its pad token is not in its vocabulary.
    """
    labels = checkpoint.config.get("id2label")
    num_labels = checkpoint.config.get("num_labels") if labels is None else len(labels)
    if num_labels != 1:
        raise CheckpointError(
            "not a reward model with one label",
            where=f"{checkpoint.uri}/config.json, id2label",
            got="none" if num_labels is None else f"{num_labels} labels",
            expected="a sequence classifier with 1 label",
        )
    text_config = checkpoint.config.get("text_config", checkpoint.config)
    pad_id, vocab_size = text_config.get("pad_token_id"), text_config.get("vocab_size")
    if pad_id is not None and vocab_size is not None and not 0 <= pad_id < vocab_size:
        raise CheckpointError(
            "the pad token of the reward model is not in its vocabulary",
            where=f"{checkpoint.uri}/config.json, pad_token_id",
            got=pad_id,
            expected=f"0 to {vocab_size - 1}",
        )
