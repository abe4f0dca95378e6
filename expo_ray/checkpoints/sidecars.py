"""Which files beside the weights belong to a model, and which are left-overs of training.

Only what is known to belong is carried: a copied optimizer state would cost more than the weights,
and a copied weight file of another kind would be weights that nobody extrapolated.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

CARRIED = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.tiktoken",
    "*.model",
    "*.vocab",
    "chat_template*",
    "additional_chat_templates/*.jinja",
    "preprocessor_config.json",
    "processor_config.json",
    "image_processor_config.json",
    "video_preprocessor_config.json",
    "feature_extractor_config.json",
    "*.py",
)
TOKENIZER = (
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "*.tiktoken",
    "*.model",
    "*.vocab",
    "chat_template*",
    "additional_chat_templates/*",
)
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
    if is_weight_file(name):
        return False
    folder, _, base = name.rpartition("/")
    if folder not in ("", "additional_chat_templates"):
        return False
    if any(fnmatchcase(base.upper(), pattern) for pattern in LEGAL):
        return True
    return any(fnmatchcase(name, pattern) for pattern in CARRIED)


def belongs_to_tokenizer(name: str) -> bool:
    """Tell whether a file is part of a tokenizer: two tokenizers are never mixed."""
    return any(fnmatchcase(name, pattern) for pattern in TOKENIZER)


def sort_files(names: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return (carried, not carried) of the files that are neither weights nor config nor record."""
    rest = sorted(n for n in names if n not in ("config.json", "expo_ray.json", "README.md"))
    carried = tuple(name for name in rest if is_sidecar(name))
    return carried, tuple(name for name in rest if not is_sidecar(name))
