"""Config and sidecars of a checkpoint as files on this machine, for libraries that want a folder.

Weights stay where they are: whoever needs them reads them by ranges.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from expo_ray.checkpoints.checkpoint import CONFIG_NAME, Checkpoint
from expo_ray.checkpoints.storages.atomic_io import atomic_write_bytes
from expo_ray.checkpoints.storages.local import LocalStorage
from expo_ray.errors import CheckpointError


def local_folder(checkpoint: Checkpoint) -> Path:
    """Return a folder with the config, tokenizer, chat template and code of a checkpoint.

    A plain local checkpoint is its own folder. Any other has one in the cache of this machine,
    named after its content: processes that make it at once write the same bytes.

    Args:
        checkpoint: In a bucket, on the Hub, an adapter on its base, or local.

    Raises:
        CheckpointError: A file cannot be read, or the cache cannot be written.
    """
    if isinstance(checkpoint.storage, LocalStorage):
        return Path(checkpoint.uri)
    files = {name: checkpoint.storage.read_bytes(name) for name in checkpoint.sidecars}
    # Not the stored file: the config of an adapter is that of its base.
    files[CONFIG_NAME] = json.dumps(checkpoint.config, sort_keys=True).encode()
    digest = hashlib.sha256()
    for name, data in sorted(files.items()):
        digest.update(f"{name} {len(data)}\n".encode() + data)
    folder = cache_folder() / digest.hexdigest()[:32]
    try:
        for name, data in files.items():
            path = folder / name
            if not path.is_file() or path.read_bytes() != data:
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic_write_bytes(path, data)
    except OSError as error:
        raise CheckpointError(
            "the cache for tokenizers and configs cannot be written",
            where=folder,
            got=error.strerror,
            hint="set XDG_CACHE_HOME to a folder that can",
        ) from error
    return folder


def cache_folder() -> Path:
    """Return where such folders lie: `$XDG_CACHE_HOME/expo_ray`, else `~/.cache/expo_ray`."""
    root = os.environ.get("XDG_CACHE_HOME")
    return Path(root or Path.home() / ".cache") / "expo_ray" / "checkpoints"
