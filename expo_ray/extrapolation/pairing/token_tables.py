"""Which token every row of a model stands for, told from the tokenizer files beside the weights.

Two models are compared by files of one kind. What states its ids (tokenizer.json, vocab.json,
vocab.txt) can place rows, too; SentencePiece models and rank files are only compared, because some
architectures shift their ids.
"""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from expo_ray.checkpoints.checkpoint import Checkpoint
from expo_ray.errors import CheckpointError
from expo_ray.json_text import parse_json

Table = Mapping[int, str]
Parser = Callable[[bytes], dict[int, str]]

FAST = "tokenizer.json"
_ADDED, _CONFIG = "added_tokens.json", "tokenizer_config.json"
_NUM_NAMED = 5
_MALFORMED = (ValueError, KeyError, TypeError, IndexError, AttributeError, RecursionError)


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerDifference:
    """Two tokenizers that are not the same."""

    file: str
    """What was compared."""
    tables: tuple[Table, Table] | None
    """Tokens by id; None where files of this kind cannot be read."""
    states_ids: bool
    """Whether the ids are those of the rows."""

    @property
    def contradicts(self) -> bool:
        """Whether an id of the second has another token in the first, as far as can be told."""
        if self.tables is None:
            return True
        first, second = self.tables
        return any(first.get(i, token) != token for i, token in second.items())

    @property
    def num_tokens(self) -> int:
        """One more than the highest id of the second, 0 where it is not known."""
        return 1 + max(self.tables[1], default=-1) if self.tables else 0

    @property
    def num_entries(self) -> int | None:
        """How many entries only one of the two has, None where that is not known."""
        if self.tables is None:
            return None
        return len(set(self.tables[0].items()) ^ set(self.tables[1].items()))

    def describe(self, sides: tuple[str, str] = ("initial", "aligned")) -> str:
        """Return in words the first ids whose tokens differ, and how many there are."""
        if self.tables is None:
            return f"two files {self.file} of a kind that cannot be read, with other bytes"
        first, second = self.tables
        ids = sorted(i for i in first.keys() | second.keys() if first.get(i) != second.get(i))
        named = [
            f"id {i}: {sides[0]} {_quoted(first.get(i))}, {sides[1]} {_quoted(second.get(i))}"
            for i in ids[:_NUM_NAMED]
        ]
        more = [f"{len(ids)} in all"] if len(ids) > _NUM_NAMED else []
        return "; ".join([*named, *more])


def compare_tokenizers(first: Checkpoint, second: Checkpoint) -> TokenizerDifference | None:
    """Compare what two models call their ids; None where it is the same, or cannot be compared.

    Raises:
        CheckpointError: A tokenizer.json is malformed.
    """
    both = set(first.sidecars) & set(second.sidecars)
    for pattern, parse, states_ids in _KINDS:
        names = sorted(name for name in both if fnmatchcase(name, pattern))
        for name in names:
            found = _compare_files(first, second, name, parse, states_ids=states_ids)
            if found is not None:
                return found
        if names:
            return None
    return None


def _compare_files(
    first: Checkpoint, second: Checkpoint, name: str, parse: Parser, *, states_ids: bool
) -> TokenizerDifference | None:
    sides = [_Files(checkpoint, name) for checkpoint in (first, second)]
    if sides[0].contents == sides[1].contents:
        return None  # the usual case, without parsing megabytes twice
    tables = [side.table(parse, states_ids=states_ids) for side in sides]
    if tables[0] is not None and tables[1] is not None:
        if tables[0] == tables[1]:
            return None
        known = (tables[0], tables[1])
        return TokenizerDifference(file=name, tables=known, states_ids=states_ids)
    if sides[0].contents[name] == sides[1].contents[name]:
        return None
    return TokenizerDifference(file=name, tables=None, states_ids=False)


def were_compared(first: Checkpoint, second: Checkpoint) -> bool:
    """Tell whether two models that both have a tokenizer have files of one kind."""
    kinds = [
        {pattern for pattern, *_ in _KINDS if any(fnmatchcase(n, pattern) for n in side.sidecars)}
        for side in (first, second)
    ]
    return bool(kinds[0] & kinds[1]) or not all(kinds)


class _Files:
    """The files of one side that say what its ids mean."""

    def __init__(self, checkpoint: Checkpoint, name: str) -> None:
        self._uri = checkpoint.uri
        self._name = name
        names = (name,) if name == FAST else (name, _ADDED, _CONFIG)
        self.contents = {
            name: checkpoint.storage.read_bytes(name)
            for name in names
            if name in checkpoint.sidecars
        }

    def table(self, parse: Parser, *, states_ids: bool) -> Table | None:
        """Return tokens by id, None where they cannot be read."""
        try:
            tokens = parse(self.contents[self._name])
            for i, token in self._added_tokens().items():
                if states_ids:
                    tokens[i] = token
                else:  # where ids are shifted, low ones are no pieces
                    tokens.setdefault(i, token)
        except _MALFORMED as error:
            if self._name != FAST:  # other files may hold anything
                return None
            raise CheckpointError(
                "tokenizer.json is malformed", where=f"{self._uri}/{FAST}", got=error
            ) from error
        return tokens

    def _added_tokens(self) -> dict[int, str]:
        added, config = (parse_json(self.contents.get(name, b"{}")) for name in (_ADDED, _CONFIG))
        decoder = config.get("added_tokens_decoder") or {}
        tokens = {int(i): token for token, i in added.items()}
        return tokens | {int(i): row["content"] for i, row in decoder.items()}


def _quoted(token: str | None) -> str:
    return "none" if token is None else repr(token)


def _parse_fast(data: bytes) -> dict[int, str]:
    table = parse_json(data)
    vocabulary = table["model"]["vocab"]
    if isinstance(vocabulary, list):  # unigram: [[token, score], ...]
        tokens = {i: str(row[0]) for i, row in enumerate(vocabulary)}
    else:
        tokens = {int(i): token for token, i in vocabulary.items()}
    tokens.update({int(row["id"]): row["content"] for row in table.get("added_tokens") or []})
    return tokens


def _parse_ids(data: bytes) -> dict[int, str]:
    return {int(i): token for token, i in parse_json(data).items()}


def _parse_lines(data: bytes) -> dict[int, str]:
    return dict(enumerate(data.decode().rstrip("\n").split("\n")))


def _parse_pieces(data: bytes) -> dict[int, str]:
    """Read a SentencePiece model, or the rank file that some models keep under the same name."""
    with contextlib.suppress(ValueError):
        return _parse_ranks(data)
    # Takes seconds to import, and is needed where two such files differ only.
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from transformers.utils import sentencepiece_model_pb2_new

    model = sentencepiece_model_pb2_new.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise ValueError("no SentencePiece model") from error
    if not model.pieces:
        raise ValueError("a SentencePiece model without pieces")
    return {i: row.piece for i, row in enumerate(model.pieces)}


def _parse_ranks(data: bytes) -> dict[int, str]:
    """Read lines of a base64 token and its rank, as tiktoken keeps them."""
    rows = [line.split() for line in data.splitlines() if line]
    return {int(rank): repr(base64.b64decode(token, validate=True)) for token, rank in rows}


def _parse_tekken(data: bytes) -> dict[int, str]:
    table = parse_json(data)
    num_special = int(table["config"]["default_num_special_tokens"])
    special = {int(row["rank"]): row["token_str"] for row in table.get("special_tokens") or []}
    tokens = {num_special + int(row["rank"]): row["token_bytes"] for row in table["vocab"]}
    return special | {i: t for i, t in tokens.items() if i < table["config"]["default_vocab_size"]}


_KINDS: tuple[tuple[str, Parser, bool], ...] = (
    (FAST, _parse_fast, True),
    ("vocab.json", _parse_ids, True),
    ("vocab.txt", _parse_lines, True),
    ("tekken.json", _parse_tekken, False),
    ("*.model*", _parse_pieces, False),
    ("*.spm", _parse_pieces, False),
    ("*.tiktoken", _parse_ranks, False),
)
