"""Weights under other names than the plain ones, and folders whose weights cannot be read.

Variants (`model.fp16.safetensors`), shards without an index and `consolidated.safetensors` hold
what the plain names do. Where they are not alone, which of them counts is not guessed.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase

from expo_ray.errors import CheckpointError, first_names

SINGLE_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
PICKLE_SINGLE_NAME = "pytorch_model.bin"
PICKLE_INDEX_NAME = "pytorch_model.bin.index.json"

_STEM = r"(?:model|pytorch_model|consolidated)"
_VARIANT = r"[A-Za-z0-9_-]+"
_INDEX = re.compile(
    rf"{_STEM}\.(?:(?:safetensors|bin)\.index\.{_VARIANT}|{_VARIANT}\.(?:safetensors|bin)\.index)\.json"
)
_SINGLE = re.compile(rf"(?:{_STEM}\.{_VARIANT}|consolidated)\.(?:safetensors|bin)")
# Also as older versions of transformers named them: `model.00001-of-00002.safetensors`.
_SHARD = re.compile(
    rf"(?P<stem>{_STEM}(?:\.(?!\d+-of-){_VARIANT})?)(?P<join>[-.])(?P<number>\d+)-of-(?P<total>\d+)"
    rf"(?P<end>(?:\.{_VARIANT})?\.(?:safetensors|bin))"
)
# What training keeps beside weights, in files of torch that hold none.
_NO_WEIGHTS = ("training_args.bin", "optimizer*", "scheduler*", "scaler*", "rng_state*")
_RENAME = f"where this is the whole model, rename it to {SINGLE_NAME}"
# Of files that are no weights for us: a pattern and what to do, the first that matches counts.
_CAUSES = (
    ("model_index.json", "this is a pipeline of diffusers, no language model"),
    ("adapter_model*", "a LoRA adapter needs its adapter_config.json beside the weights"),
    ("*.gguf", "GGUF files are not supported: give the original safetensors checkpoint"),
    (
        "consolidated*.pth",
        "this is Meta's own format: give the version for transformers (of Llama the repository "
        "in -hf), or convert it with transformers first",
    ),
    (
        "zero_to_fp32.py",
        "DeepSpeed ZeRO left the weights in parts: `python zero_to_fp32.py . OUTPUT` in that "
        "folder gathers them",
    ),
    (
        "*_model_states.pt",
        "DeepSpeed ZeRO left the weights in parts: its zero_to_fp32.py gathers them",
    ),
    (
        "*.distcp",
        "FSDP left the weights in parts: `accelerate merge-weights FOLDER OUTPUT` gathers them",
    ),
    ("*.safetensors", f"weights are read from {SINGLE_NAME} or {INDEX_NAME}: {_RENAME}"),
    ("*.bin", f"pickled weights are read from {PICKLE_SINGLE_NAME} or {PICKLE_INDEX_NAME}"),
    ("*.pt", f"weights of torch are read from {PICKLE_SINGLE_NAME}: save_pretrained writes them"),
    ("*.pth", f"weights of torch are read from {PICKLE_SINGLE_NAME}: save_pretrained writes them"),
    ("*.ckpt", "a training checkpoint is no model: load it with what wrote it, save_pretrained"),
    (
        "*.h5",
        "weights of TensorFlow: transformers 4 converts them (from_tf=True, save_pretrained)",
    ),
    (
        "*.msgpack",
        "weights of Flax: transformers 4 converts them (from_flax=True, save_pretrained)",
    ),
    ("*.onnx", "ONNX files are not supported: give the checkpoint they were exported from"),
    ("config.json", "config and tokenizer are there, the weights are not: fetch them, too"),
    ("tokenizer*", "only a tokenizer is there: give the folder of the model"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """Where the weights of a folder are."""

    index: str | None
    """The index that names the files; None where `files` are all."""
    files: tuple[str, ...] = ()


def find_layout(uri: str, names: Collection[str]) -> Layout:
    """Return where the weights are, of a folder without any by the plain names.

    Args:
        uri: The folder, for messages.
        names: Its files.

    Raises:
        CheckpointError: There are none that can be read, several, or parts of some.
    """
    top = sorted(name for name in names if "/" not in name)
    found = [Layout(index=name) for name in top if _INDEX.fullmatch(name)]
    alone = [n for n in top if _SINGLE.fullmatch(n) and not _SHARD.fullmatch(n)]
    if not found:  # shards of an index are its own
        found = [Layout(index=None, files=files) for files in _shard_groups(uri, top)]
    found += [Layout(index=None, files=(name,)) for name in alone]
    if not found:
        raise _no_weights(uri, names)
    if len(found) > 1:
        raise CheckpointError(
            "the folder holds several sets of weights: which one counts is unclear",
            where=uri,
            got=", ".join(layout.index or layout.files[0] for layout in found),
            expected=f"one, or {SINGLE_NAME}",
            hint="give a folder with one of them",
        )
    return found[0]


def _shard_groups(uri: str, names: Iterable[str]) -> list[tuple[str, ...]]:
    groups: dict[tuple[str, str, str, str], dict[int, str]] = {}
    for name in names:
        if match := _SHARD.fullmatch(name):
            group = groups.setdefault(
                (match["stem"], match["join"], match["total"], match["end"]), {}
            )
            group[int(match["number"])] = name
    for (stem, join, total, end), files in groups.items():
        missing = [
            f"{stem}{join}{i:0{len(total)}d}-of-{total}{end}"
            for i in range(1, min(int(total), 10**5) + 1)
            if i not in files
        ]
        if missing:
            raise CheckpointError(
                "some of the shards are missing",
                where=uri,
                got=f"{len(files)} of {int(total)}, without {first_names(missing)}",
                expected="all of them; an index is then not needed",
                hint="fetch them, too",
            )
    return [tuple(files[i] for i in sorted(files)) for files in groups.values()]


def _no_weights(uri: str, names: Collection[str]) -> CheckpointError:
    folders = _folders_with_weights(names)
    kept = [n for n in names if not any(fnmatchcase(n, pattern) for pattern in _NO_WEIGHTS)]
    hint = "check the path" if names else "the folder is empty: check the path"
    if folders:
        hint = f"its subfolders do, give one of them: {first_names(folders)}"
    else:
        for pattern, words in _CAUSES:
            if any(fnmatchcase(name.rpartition("/")[2], pattern) for name in kept):
                hint = words
                break
    return CheckpointError(
        "the folder holds no weights that can be read",
        where=uri,
        got=first_names(sorted(names)) or None,
        expected=f"{SINGLE_NAME} or {INDEX_NAME}",
        hint=hint,
    )


def _folders_with_weights(names: Iterable[str]) -> list[str]:
    plain = (SINGLE_NAME, INDEX_NAME, PICKLE_SINGLE_NAME, PICKLE_INDEX_NAME, "adapter_config.json")
    found = {n.rpartition("/")[0] for n in names if "/" in n and n.rpartition("/")[2] in plain}
    # checkpoint-200 before checkpoint-1000.
    return sorted(found, key=lambda n: (re.sub(r"\d+", "", n), [*map(int, re.findall(r"\d+", n))]))
