"""Whether transformers would load tensors of these names and shapes, without their values.

Everything happens on torch's meta device: a 70B model is checked in seconds and no memory.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from expo_ray.checkpoints.checkpoint import CONFIG_NAME, Checkpoint
from expo_ray.checkpoints.tensors import TORCH_DTYPES


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadingCheck:
    """What a trial load found."""

    status: str
    """loads, incomplete (missing or unexpected names), fails, or skipped."""
    note: str = ""
    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-able."""
        return {
            "status": self.status,
            "note": self.note,
            "missing": list(self.missing),
            "unexpected": list(self.unexpected),
        }


def check_loading(uri: str) -> LoadingCheck:
    """Load a checkpoint's names and shapes into the model class that its config names.

    Args:
        uri: The checkpoint; an unfinished output is accepted.

    Returns:
        The finding; custom code is never run, such models are skipped.
    """
    checkpoint = Checkpoint.open(uri, allow_unfinished=True)
    names = checkpoint.config.get("architectures") or []
    import transformers  # seconds to import: only here

    model_type = checkpoint.config.get("model_type")
    if model_type not in transformers.CONFIG_MAPPING:
        return LoadingCheck(
            status="skipped", note=f"transformers does not know model type {model_type!r}"
        )
    model_class = getattr(transformers, str(names[0]), None) if names else None
    if model_class is None:
        return LoadingCheck(status="skipped", note=f"transformers has no class {names}")
    return _load(transformers, model_class, checkpoint)


def _load(transformers: Any, model_class: Any, checkpoint: Checkpoint) -> LoadingCheck:
    state = {
        ref.name: torch.empty(ref.shape, dtype=TORCH_DTYPES[ref.dtype], device="meta")
        for ref in checkpoint.tensors.values()
    }
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with tempfile.TemporaryDirectory() as folder:
            # A bucket is no place that transformers knows.
            text = json.dumps(checkpoint.config)
            Path(folder, CONFIG_NAME).write_text(text, encoding="utf-8")
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        _, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=state,
            device_map={"": "meta"},
            output_loading_info=True,
        )
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        # ImportError of an optional package is a RuntimeError or ValueError in transformers.
        return LoadingCheck(status="fails", note=str(error).strip()[:500])
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    missing = tuple(sorted(info["missing_keys"]))
    unexpected = tuple(sorted(info["unexpected_keys"]))
    status = "incomplete" if missing or unexpected else "loads"
    return LoadingCheck(status=status, missing=missing, unexpected=unexpected)
