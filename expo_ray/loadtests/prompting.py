"""Which prompt each request carries: in turn, and unique where asked for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from expo_ray.loadtests.loads import Load
from expo_ray.loadtests.records import Job, Phase
from expo_ray.tables import Message, Prompt


class PromptSource:
    """Deals out prompts in order, and round again, across all points of a load test.

    Args:
        prompts: At least one.
        salt: Makes each prompt unique by letters before it; None leaves prompts alone.
        seen: What the service was sent before, as an earlier source left it here; None: nothing.
    """

    def __init__(
        self, prompts: Sequence[Prompt], salt: str | None = None, seen: set[bytes] | None = None
    ) -> None:
        self._prompts = prompts
        self._salt = salt
        self._num_taken = 0
        self._num_jobs = 0
        self._seen = set() if seen is None else seen
        self._repeats = False

    @property
    def prefix_cache(self) -> str:
        """What a prefix cache could know of the prompts: `unique`, `once` or `reused`.

        `once`: no prompt was sent twice, yet prompts may share their beginnings.
        """
        if self._repeats:
            return "reused"
        return "once" if self._salt is None else "unique"

    def take(self, num: int, phase: Phase) -> list[Job]:
        """Return the next requests."""
        return [self._next(phase) for _ in range(num)]

    def replay(self, load: Load) -> list[Job]:
        """Return the requests of a trace, with their own prompts where it has them."""
        return [
            self._next("measured", messages=request.messages, max_tokens=request.max_tokens)
            for request in load.trace
        ]

    def _next(
        self,
        phase: Phase,
        *,
        messages: tuple[Message, ...] | None = None,
        max_tokens: int | None = None,
    ) -> Job:
        request_id = self._num_jobs
        self._num_jobs += 1
        prompt_id = f"trace-{request_id}"
        if messages is None:
            prompt = self._prompts[self._num_taken % len(self._prompts)]
            self._num_taken += 1
            prompt_id, messages = prompt.prompt_id, prompt.messages
        messages = self._unique(messages, request_id)
        self._note(messages)
        return Job(
            request_id=request_id,
            prompt_id=prompt_id,
            messages=messages,
            phase=phase,
            max_tokens=max_tokens,
        )

    def _note(self, messages: tuple[Message, ...]) -> None:
        digest = hashlib.sha256(json.dumps(messages).encode()).digest()
        self._repeats = self._repeats or digest in self._seen
        self._seen.add(digest)

    def _unique(self, messages: tuple[Message, ...], request_id: int) -> tuple[Message, ...]:
        if self._salt is None:
            return messages
        letters = hashlib.sha256(f"{self._salt}/{request_id}".encode()).hexdigest()[:12]
        first, *others = messages
        return (
            Message(role=first["role"], content=f"[{letters}] {first['content']}"),
            *others,
        )
