"""From the chats that a driver asks for to rows that fit the engine's context."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from expo_ray.errors import TableError
from expo_ray.serving.engines.interface import Generated, Row
from expo_ray.serving.loaded import ChatRow, refused
from expo_ray.tables.prompts import Message


def fit_rows(
    rows: Sequence[ChatRow],
    *,
    encode: Callable[[Sequence[Message]], list[int]],
    max_model_len: int,
) -> tuple[dict[int, Row], dict[int, Generated]]:
    """Return the rows to generate and the refused ones, by their place.

    Args:
        rows: What is asked for.
        encode: Token ids of a chat.
        max_model_len: Tokens of prompt and response together.
    """
    fitting: dict[int, Row] = {}
    refusals: dict[int, Generated] = {}
    for i, row in enumerate(rows):
        try:
            ids = encode(row.messages)
        except TableError as error:
            refusals[i] = refused(str(error))
            continue
        room = max_model_len - len(ids)
        if room < 1:
            context = f"the model's context is {max_model_len}"
            refusals[i] = refused(f"the prompt has {len(ids)} tokens, {context}", len(ids))
        else:
            limit = min(row.params.max_tokens, room)
            fitting[i] = Row(
                prompt_ids=ids,
                params=row.params,
                seed=row.seed,
                max_tokens=limit,
                # What a candidate writes out of place is for guards and reward models to see.
                keep_special_tokens=True,
            )
    return fitting, refusals
