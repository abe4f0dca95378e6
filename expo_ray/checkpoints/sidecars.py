"""Which files beside the weights belong to a model, and which are left-overs of training.

Only what is known to belong is carried: a copied optimizer state would cost more than the weights,
and a copied weight file of another kind would be weights that nobody extrapolated.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

from expo_ray.checkpoints.names import is_plain_name

TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "*vocab.json",
    "merges.txt",
    "dict.txt",
    "bpe.codes",
    "normalizer.json",
    "tekken.json",
    "*.tiktoken",
    "*.model",
    "*.spm",
    "*.vocab",
    "chat_template*",
    "additional_chat_templates/*.jinja",
)
CARRIED = (
    *TOKENIZER,
    "generation_config.json",
    "*processor_config.json",
    "feature_extractor_config.json",
    "SYSTEM_PROMPT.txt",
    "custom_generate/requirements.txt",
    "*.py",
)
# Of another model they change what this one does: transformers looks for an adapter beside weights.
_ADAPTER = ("adapter_config.json",)
# What training keeps beside a model; code in other folders is imported by that of the model.
_LEFTOVERS = ("checkpoint-*", "global_step*", "runs", "wandb", "mlruns", "logs", "__pycache__")
LEGAL = ("*LICENSE*", "*LICENCE*", "*NOTICE*", "*USE_POLICY*")
WEIGHT_SUFFIXES = (
    ".safetensors",
    ".safetensors.index.json",
    ".bin",
    ".bin.index.json",
    ".pt",
    ".pth",
    ".ckpt",
    ".h5",
    ".msgpack",
    ".gguf",
    ".onnx",
    ".npz",
)


def is_weight_file(name: str) -> bool:
    """Tell whether a file holds weights, or names files that do."""
    return name.lower().endswith(WEIGHT_SUFFIXES)


def is_sidecar(name: str) -> bool:
    """Tell whether a file is carried from aligned to the output beside weights and config."""
    if is_weight_file(name) or not is_plain_name(name):  # a line break could forge another file
        return False
    *folders, _ = name.split("/")
    if any(fnmatchcase(folder, pattern) for folder in folders for pattern in _LEFTOVERS):
        return False
    if is_legal(name):
        return True
    # A `*` passes slashes, so that whole patterns would carry files of any folder.
    patterns = (
        pattern for pattern in CARRIED if "/" in pattern or pattern == "*.py" or not folders
    )
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def is_legal(name: str) -> bool:
    """Tell whether a file is a licence or notice, which no loader needs."""
    return "/" not in name and any(fnmatchcase(name.upper(), pattern) for pattern in LEGAL)


def is_found_by_name(name: str) -> bool:
    """Tell whether loaders take a file beside any weights for its name alone.

    Code is not: the config names it.
    """
    patterns = (*CARRIED, *_ADAPTER) if is_sidecar(name) else _ADAPTER
    return any(fnmatchcase(name, pattern) for pattern in patterns if pattern != "*.py")


def belongs_to_tokenizer(name: str) -> bool:
    """Tell whether a file is part of a tokenizer: two tokenizers are never mixed."""
    return any(fnmatchcase(name, pattern) for pattern in TOKENIZER)


def sort_files(names: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (carried, not carried) of the files that are neither weights nor config nor record."""
    rest = sorted(n for n in names if n not in ("config.json", "expo_ray.json", "README.md"))
    carried = tuple(name for name in rest if is_sidecar(name))
    return carried, tuple(name for name in rest if not is_sidecar(name))
