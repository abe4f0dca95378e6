"""Which prompts a run answers: those that choose alpha, and further sets by their names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from expo_ray.selection.gates import MAIN

PromptColumn = Literal[
    "prompt_id",
    "prompt",
    "instruction",
    "messages",
    "conversations",
    "input",
    "context",
    "system",
    "system_prompt",
    "history",
    "answer",
    "constraints",
    "tests",
]


class PromptSource(BaseModel):
    """Where prompts lie, and which of them are answered."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: str | None = Field(
        None,
        description="JSONL, JSON, Parquet or CSV: a file, s3://, gs://, or a dataset on the Hub "
        "(hf://datasets/OWNER/NAME#split=SPLIT); the laboratory brings its own.",
    )
    columns: dict[PromptColumn, str] = Field(
        default_factory=dict, description="The source's names of our columns."
    )
    limit: int | None = Field(None, ge=2, description="Use the first N prompts only.")
    sample: int | None = Field(
        None, ge=2, description="Use N prompts drawn at random, the same whatever comes after."
    )
    seed: int | None = Field(
        None, ge=0, description="Seed of the draw; null takes that of the recipe."
    )

    def reading(self, seed: int) -> dict[str, Any]:
        """Return the arguments of `read_prompts` beside the path."""
        return {
            "limit": self.limit,
            "columns": self.columns,
            "num_prompts": self.sample,
            "seed": seed if self.seed is None else self.seed,
        }


class PromptSet(PromptSource):
    """Further prompts, all held out: the aligned model answers them, and who is to be chosen."""

    path: str = Field(
        min_length=1,
        description="JSONL, JSON, Parquet or CSV: a file, s3://, gs://, or a dataset on the Hub.",
    )
    reward_models: tuple[str, ...] = Field(
        min_length=1, description="What scores the answers; a gate asks the first."
    )
    role: Literal["gate", "report"] = Field(
        "gate",
        description="`gate`: a candidate must not lose more than `selection.no_worse_than` allows "
        "this set by its name; `report`: the difference is told, and decides nothing.",
    )


class PromptSettings(PromptSource):
    """Which prompts are answered: those that choose alpha, and perhaps further sets by their names.

    `prompts: {path: ...}` has one set, `prompts: {main: {path: ...}, NAME: {path: ...}}` has more;
    a further one may have `reward_models` and `role: gate`.
    """

    model_config = ConfigDict(extra="allow", frozen=True)
    __pydantic_extra__: dict[str, PromptSet]

    heldout_fraction: float = Field(
        0.5, gt=0, lt=1, description="Share of the prompts kept apart to confirm the choice."
    )

    @property
    def sets(self) -> Mapping[str, PromptSet]:
        """The further sets, by name."""
        return self.__pydantic_extra__ or {}

    @model_validator(mode="before")
    @classmethod
    def _main_is_one_of_several(cls, given: Any) -> Any:
        if not isinstance(given, Mapping) or MAIN not in given:
            return given
        main, others = given[MAIN], {key: given[key] for key in given if key != MAIN}
        clash = sorted(cls.model_fields.keys() & others.keys())
        if clash:
            raise ValueError(f"beside `main` stand other sets of prompts; move {clash[0]} into it")
        if not isinstance(main, Mapping):
            raise ValueError("`main` holds the keys of the prompts that choose alpha")
        return {**main, **others}

    @model_validator(mode="after")
    def _names_are_names_of_folders(self) -> Self:
        for name in self.sets:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise ValueError(f"the name of a set has letters, digits, . _ and - alone: {name}")
        return self
