"""Reading preferences: pairs (or groups) of responses to one prompt, of which some are better.

A row has `chosen` and `rejected`, each a text, the turns of a chat, or a list of texts (several of
each, as in RewardBench 2), and the prompt as `questions` reads it unless the turns hold it;
`subset` and `id` are optional.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

from expo_ray.errors import TableError
from expo_ray.tables.prompt_files import prompt_files
from expo_ray.tables.prompt_rows import read_rows
from expo_ray.tables.questions import QuestionReader
from expo_ray.tables.turns import Turns, read_turns, same_turns, same_words, shown, text_of

ALL = "all"
_COLUMNS = ("chosen", "rejected", "id", "subset")


@dataclass(frozen=True, kw_only=True, slots=True)
class Preference:
    """One prompt with its better and its worse responses."""

    pair_id: str
    subset: str
    """`all` where the file names none."""
    prompt: Turns
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]


def read_preferences(path: str | Path) -> list[Preference]:
    """Read a preference file; the suffix says which format it is.

    Args:
        path: JSONL, JSON, Parquet or CSV, as prompts: a path, `s3://`, `gs://`, `hf://datasets/`.

    Raises:
        TableError: The file is missing, empty or malformed.
    """
    rows = itertools.chain.from_iterable(read_rows(file) for file in prompt_files(path))
    questions = QuestionReader(known=_COLUMNS, cut_answers=True)
    preferences = [_parse_row(value, questions, where, i) for i, (where, value) in enumerate(rows)]
    if not preferences:
        raise TableError("the preference file has no rows", where=path)
    questions.tell(path)
    return preferences


def _parse_row(value: object, questions: QuestionReader, where: str, index: int) -> Preference:
    if not isinstance(value, dict):
        raise TableError("a row is not an object", where=where, got=type(value).__name__)
    given = questions.read(value, where).turns
    sides = {
        name: [_split(side, given, f"{where}, {name}") for side in _sides(value, name, where)]
        for name in ("chosen", "rejected")
    }
    prompts = {tuple((m["role"], m["content"]) for m in p) for s in sides.values() for p, _ in s}
    if len(prompts) != 1:
        raise TableError("chosen and rejected answer different prompts", where=where)
    return Preference(
        pair_id=text_of(str(value.get("id", index)), where),
        subset=text_of(str(value.get("subset") or ALL), where),
        prompt=sides["chosen"][0][0],
        chosen=tuple(text for _, text in sides["chosen"]),
        rejected=tuple(text for _, text in sides["rejected"]),
    )


def _sides(row: dict[str, object], name: str, where: str) -> list[object]:
    """Return the responses of one side: several only where it is a list of texts or of chats."""
    value = row.get(name)
    if isinstance(value, list) and value and not isinstance(value[0], dict):
        return value
    if not value:
        raise TableError(
            f"a row has no {name} response",
            where=where,
            got=", ".join(sorted(map(str, row))) or "no fields",
            expected="prompt, chosen and rejected",
        )
    return [value]


def _split(side: object, given: Turns, where: str) -> tuple[Turns, str]:
    """Return (prompt, response) of a side that is a text, the answer's turn, or a whole chat."""
    if isinstance(side, str):
        prompt, response = given, text_of(side, where)
    else:
        turns = read_turns(side, where)
        if turns[-1]["role"] != "assistant":
            raise TableError("the last turn is not the assistant's", where=where)
        prompt, response = _one_prompt(turns[:-1], given, where), turns[-1]["content"]
    if all(turn["role"] == "system" for turn in prompt):
        raise TableError(
            "a row has no prompt", where=where, expected="prompt, or turns that hold it"
        )
    return prompt, response


def _one_prompt(chat: Turns, given: Turns, where: str) -> Turns:
    """Return the turns before an answer, which the row's own prompt may say in part."""
    systems = [turns[:1] for turns in (given, chat) if turns and turns[0]["role"] == "system"]
    asked, told = (turns[1:] if turns[:1] in systems else turns for turns in (given, chat))
    # Where the chat goes on, published files give the first or the last question as the prompt.
    ends = ((), told, *((turn,) for turn in told if turn["role"] == "user"))
    contradicts = not any(same_turns(asked, end) for end in ends)
    if len(systems) == 2:
        contradicts |= not same_turns(*systems)
    elif told and asked and systems and chat[:1] == systems[0]:
        # The prompt may be what the system says.
        contradicts &= not same_words(asked[-1]["content"], systems[0][0]["content"])
    if contradicts and (told or len(systems) == 2):
        raise TableError(
            "the prompt of a row contradicts the chat of its response",
            where=where,
            got=shown([turn["content"] for turn in chat]),
            expected=shown([turn["content"] for turn in given]),
            hint="leave one of them out",
        )
    return (*(systems[0] if systems else ()), *(told or asked))
