"""Whether transformers would load the output: its names and shapes, without their values.

Everything happens on torch's meta device: a 70B model is checked in seconds and no memory.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from expo_ray.checkpoints.checkpoint import CONFIG_NAME
from expo_ray.extrapolation.planning.plan import Plan
from expo_ray.lazy import done_beside, quick_imports


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


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadingRequest:
    """What is to be loaded: the config and the tensors of the output, before it is written."""

    config: Mapping[str, Any]
    tensors: Mapping[str, tuple[str, tuple[int, ...]]]
    """Dtype, as safetensors writes it, and shape by name."""


def loading_request(plan: Plan, config: bytes) -> LoadingRequest:
    """Return the trial load of what a plan writes.

    Args:
        plan: The plan.
        config: config.json of the output.
    """
    if plan.is_requantized:
        # A quantizer of transformers wants a GPU: its names and shapes are tried without it.
        base = plan.pair.base
        plain = {ref.name: (ref.dtype, ref.shape) for ref in base.tensors.values()}
        return LoadingRequest(config=base.config, tensors=plain)
    return LoadingRequest(
        config=json.loads(config),
        tensors={
            name: (dtype, shape)
            for pair in plan.pair.tensors
            for name, dtype, shape in pair.outputs
        },
    )


def check_loading(request: LoadingRequest) -> LoadingCheck:
    """Load names and shapes into the model class that a config names.

    Args:
        request: The config and the tensors.

    Returns:
        The finding; custom code is never run, such models are skipped. It is advice, so nothing
        that a library raises over a strange config ends the work.
    """
    try:
        return _check(request)
    except Exception as error:  # noqa: BLE001  # validators of configs raise what they like
        text = str(error).strip() or type(error).__name__
        return LoadingCheck(status="fails", note=text[:500])


def imported_meanwhile(request: LoadingRequest | None) -> AbstractContextManager[None]:
    """Import what a trial load needs, which takes seconds, beside other work of this process.

    The load itself comes after it: what transformers sets meanwhile, such as torch's default dtype,
    holds for all threads.

    Args:
        request: The trial load; None imports nothing.
    """
    if request is None:
        return nullcontext()

    def work() -> None:
        with suppress(Exception):  # the trial load meets it again, and tells
            _model_class(request)

    return done_beside(work, name="trial-load")


def _check(request: LoadingRequest) -> LoadingCheck:
    found = _model_class(request)
    return found if isinstance(found, LoadingCheck) else _load(found, request)


def _model_class(request: LoadingRequest) -> Any:
    """Return the class that a config names, or why there is none to try."""
    import transformers  # seconds to import: only here

    model_type = request.config.get("model_type")
    if model_type not in transformers.CONFIG_MAPPING:
        return LoadingCheck(
            status="skipped", note=f"transformers does not know model type {model_type!r}"
        )
    names = request.config.get("architectures") or []
    with quick_imports():
        model_class = getattr(transformers, str(names[0]), None) if names else None
    if model_class is None:
        return LoadingCheck(status="skipped", note=f"transformers has no class {names}")
    return model_class


def _load(model_class: Any, request: LoadingRequest) -> LoadingCheck:
    import torch
    import transformers

    from expo_ray.checkpoints.tensors import TORCH_DTYPES

    state = {
        name: torch.empty(shape, dtype=TORCH_DTYPES[dtype], device="meta")
        for name, (dtype, shape) in request.tensors.items()
    }
    logging = transformers.utils.logging
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with tempfile.TemporaryDirectory() as folder:
            # A bucket is no place that transformers knows.
            text = json.dumps(request.config)
            Path(folder, CONFIG_NAME).write_text(text, encoding="utf-8")
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        _, info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=state,
            device_map={"": "meta"},
            output_loading_info=True,
        )
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
    missing = tuple(sorted(info["missing_keys"]))
    unexpected = tuple(sorted(info["unexpected_keys"]))
    status = "incomplete" if missing or unexpected else "loads"
    return LoadingCheck(status=status, missing=missing, unexpected=unexpected)
