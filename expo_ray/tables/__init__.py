"""Prompts, responses and rewards on disk: readers, Arrow schemas, resumable writers, row seeds."""

from typing import TYPE_CHECKING

from expo_ray.lazy import lazy_exports

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

__getattr__ = lazy_exports(
    __name__,
    {
        "Message": "prompts",
        "Prompt": "prompts",
        "read_prompts": "prompts",
        "ResumableTable": "resumable",
        "RESPONSES_SCHEMA": "schemas",
        "REWARDS_SCHEMA": "schemas",
        "read_table": "schemas",
        "assign_splits": "seeds",
        "row_seed": "seeds",
    },
)
