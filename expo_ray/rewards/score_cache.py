"""Scores remembered by content, so that no run scores a text that another one has scored.

One SQLite file of this machine, written by any number of processes. A key is a digest of all that
decides a score: reward model, revision, tokenizer, chat template, config, dtype, engine, prompt,
response, reference. Failures and scores of cut chats are not remembered. The cache is a
convenience: where it is damaged, scoring goes on without it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from expo_ray.rewards.interface import Chat, References, RewardModel, RewardScore

_LOG = logging.getLogger(__name__)
CACHE_ENV = "EXPO_RAY_SCORE_CACHE"
_TIMEOUT_SECONDS = 60.0
_FORMAT = "scores 1"
"""Part of every key; another one where the same input would get another score."""
_KEYS_PER_QUERY = 500
_TABLE = """CREATE TABLE IF NOT EXISTS scores
(key TEXT PRIMARY KEY, reward REAL NOT NULL, tokens INTEGER NOT NULL) WITHOUT ROWID"""


def score_cache_file() -> Path:
    """Return where scores are remembered: `$EXPO_RAY_SCORE_CACHE`, else below the usual caches."""
    if CACHE_ENV in os.environ:
        return Path(os.environ[CACHE_ENV])
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "expo_ray" / "scores.sqlite"


class ScoreCache:
    """Scores by key.

    Args:
        path: The SQLite file, on a disk of this machine; None takes the usual place.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or score_cache_file()

    def find(self, keys: Sequence[str]) -> dict[str, RewardScore]:
        """Return the scores that are known."""
        found: dict[str, RewardScore] = {}
        with self._going_on("read"), self._connection() as connection:
            for start in range(0, len(keys), _KEYS_PER_QUERY):
                some = keys[start : start + _KEYS_PER_QUERY]
                marks = ",".join("?" * len(some))
                query = f"SELECT key, reward, tokens FROM scores WHERE key IN ({marks})"  # noqa: S608
                for key, reward, tokens in connection.execute(query, some):
                    if isinstance(reward, float) and math.isfinite(reward):
                        found[key] = RewardScore(reward=reward, tokens=int(tokens))
        return found

    def remember(self, scores: Mapping[str, RewardScore]) -> None:
        """Keep scores, but those that failed or are of a part of the chat."""
        whole = {k: s for k, s in scores.items() if s.reward is not None and not s.truncated}
        rows = [(key, score.reward, score.tokens) for key, score in whole.items()]
        if not rows:
            return
        with self._going_on("written"), self._connection() as connection:
            connection.executemany("INSERT OR IGNORE INTO scores VALUES (?, ?, ?)", rows)

    @contextmanager
    def _going_on(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            _LOG.warning("the score cache %s cannot be %s: %s", self._path, what, error)

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # A connection for each chunk of work: it costs a fraction of a millisecond and is bound to
        # no thread. Its own context commits.
        opened = sqlite3.connect(self._path, timeout=_TIMEOUT_SECONDS)
        with closing(opened) as connection, connection:
            connection.execute(_TABLE)
            yield connection


class CachedRewardModel:
    """A reward model that scores nothing twice.

    Args:
        model: Scores what is not known yet.
        cache: What is known.
    """

    def __init__(self, model: RewardModel, cache: ScoreCache) -> None:
        self._model = model
        self._cache = cache
        self.name = model.name
        self.revision = model.revision
        self.settings = model.settings
        self.needs_reference = model.needs_reference
        self.num_cached = 0
        """Scores that were known, so far."""

    def score(
        self, chats: Sequence[Chat], references: References | None = None
    ) -> list[RewardScore]:
        """Score chats; equal ones once.

        Args:
            chats: Chats whose last turn is the assistant's.
            references: For a pairwise model: what each last turn is compared with.
        """
        compared = references if self.needs_reference else None
        keys = [
            self._key(chat, None if compared is None else compared[i])
            for i, chat in enumerate(chats)
        ]
        known = self._cache.find(list(dict.fromkeys(keys)))
        self.num_cached += sum(key in known for key in keys)
        first = {key: i for i, key in reversed(list(enumerate(keys))) if key not in known}
        todo = list(first.values())
        scores = self._model.score(
            [chats[i] for i in todo], None if compared is None else [compared[i] for i in todo]
        )
        fresh = dict(zip(first, scores, strict=True))
        self._cache.remember(fresh)
        known |= fresh
        return [known[key] for key in keys]

    def _key(self, chat: Chat, reference: str | None) -> str:
        turns = [[turn["role"], turn["content"]] for turn in chat]
        content = [_FORMAT, self.revision, self.settings, turns, reference]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()
