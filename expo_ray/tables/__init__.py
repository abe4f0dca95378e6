"""Prompts, responses and rewards on disk: readers, Arrow schemas, resumable writers, row seeds."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from expo_ray.tables.prompts import Message, Prompt, read_prompts
    from expo_ray.tables.resumable import ResumableTable
    from expo_ray.tables.schemas import RESPONSES_SCHEMA, REWARDS_SCHEMA, read_table
    from expo_ray.tables.seeds import assign_splits, row_seed

__all__ = [
    "RESPONSES_SCHEMA",
    "REWARDS_SCHEMA",
    "Message",
    "Prompt",
    "ResumableTable",
    "assign_splits",
    "read_prompts",
    "read_table",
    "row_seed",
]

_MODULES = {
    "Message": "prompts",
    "Prompt": "prompts",
    "read_prompts": "prompts",
    "ResumableTable": "resumable",
    "RESPONSES_SCHEMA": "schemas",
    "REWARDS_SCHEMA": "schemas",
    "read_table": "schemas",
    "assign_splits": "seeds",
    "row_seed": "seeds",
}


def __getattr__(name: str) -> object:
    # Lazy (PEP 562): importing the package must not import pyarrow.
    if name in _MODULES:
        return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
