"""What a model thought and what it answered: the one place that knows.

    <think>The sum is 4.</think>Four.        thought: The sum is 4.    answer: Four.

A thought stands before the answer, between tags that differ from model to model. The chat template
may have written the opening one already, so that the response begins inside the thought. A thought
without its end is one that was cut off: there is no answer then. A tag between quotation marks, and
any tag within the answer, is text like other text.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from expo_ray.errors import ConfigError, argument
from expo_ray.tables.turns import Message

_SPACE = re.compile(r"\s*")
_QUOTES = frozenset("`\"'")
_THOUGHT_FIELDS = ("reasoning_content", "reasoning", "thinking")
_THOUGHT_PARTS = ("thinking", "reasoning")
_MAX_SHOWN = 60


@dataclass(frozen=True, kw_only=True, slots=True)
class ThoughtTag:
    """How some models mark what they think."""

    name: str
    """What `--reasoning` calls it."""
    opens: tuple[str, ...]
    closes: tuple[str, ...]
    leftovers: tuple[str, ...] = ()
    """Marks around the answer or at the end of the thought, which are no part of either."""

    def begins(self, text: str, *, is_known: bool) -> bool:
        """Tell whether a response begins with a thought.

        Args:
            text: The response.
            is_known: Whether something says that the model has this tag. Words that anybody may
                begin an answer with are a tag only then, or where their end follows.
        """
        begun = text.lstrip()
        if not begun.startswith(self.opens):
            return False
        return is_known or not begun[0].isalpha() or any(mark in text for mark in self.closes)


TAGS: tuple[ThoughtTag, ...] = (
    # DeepSeek-R1, Qwen3, QwQ, GLM, Kimi K2, MiniMax M2, Nemotron, OLMo 3, SmolLM3, ERNIE, Hunyuan
    # and Granite 3.3, of which the last two mark the answer as well.
    ThoughtTag(
        name="think",
        opens=("<think>",),
        closes=("</think>",),
        leftovers=("<answer>", "</answer>", "<response>", "</response>"),
    ),
    ThoughtTag(name="magistral", opens=("[THINK]",), closes=("[/THINK]",)),
    ThoughtTag(
        name="gpt-oss",
        opens=("<|channel|>analysis<|message|>",),
        closes=("<|channel|>final<|message|>",),
        leftovers=("<|end|>", "<|start|>assistant", "<|return|>"),
    ),
    ThoughtTag(name="seed-oss", opens=("<seed:think>",), closes=("</seed:think>",)),
    ThoughtTag(name="exaone-deep", opens=("<thought>",), closes=("</thought>",)),
    ThoughtTag(
        name="granite",
        opens=("Here is my thought process:", "Here's my thought process:"),
        closes=("Here is my response:", "Here's my response:"),
    ),
    ThoughtTag(
        name="cohere",
        opens=("<|START_THINKING|>",),
        closes=("<|END_THINKING|>",),
        leftovers=("<|START_RESPONSE|>", "<|END_RESPONSE|>", "<|START_TEXT|>", "<|END_TEXT|>"),
    ),
    ThoughtTag(name="gemma", opens=("<|channel>thought",), closes=("<channel|>",)),
    ThoughtTag(name="minimax-m3", opens=("<mm:think>",), closes=("</mm:think>",)),
    ThoughtTag(
        name="kimi-k3",
        opens=("<|open|>think<|sep|>",),
        closes=("<|close|>think<|sep|>",),
        leftovers=(
            *("<|open|>response<|sep|>", "<|close|>response<|sep|>"),
            "<|close|>message<|sep|>",
        ),
    ),
    ThoughtTag(
        name="plamo",
        opens=("<|plamo:begin_think:plamo|>",),
        closes=("<|plamo:end_think:plamo|>",),
    ),
    ThoughtTag(name="apertus", opens=("<|inner_prefix|>",), closes=("<|inner_suffix|>",)),
    ThoughtTag(
        name="apriel",
        opens=("Here are my reasoning steps:",),
        closes=("[BEGIN FINAL RESPONSE]",),
        leftovers=("[END FINAL RESPONSE]",),
    ),
    ThoughtTag(
        name="open-thoughts",
        opens=("<|begin_of_thought|>",),
        closes=("<|end_of_thought|>",),
        leftovers=("<|begin_of_solution|>", "<|end_of_solution|>"),
    ),
    ThoughtTag(
        name="thinking",
        opens=("<thinking>",),
        closes=("</thinking>",),
        leftovers=("<answer>", "</answer>", "<output>", "</output>"),
    ),
    ThoughtTag(
        name="reasoning",
        opens=("<reasoning>",),
        closes=("</reasoning>",),
        leftovers=("<answer>", "</answer>"),
    ),
)
"""All that `auto` recognises."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Thinking:
    """A response, told apart."""

    thought: str | None
    """What was thought, without its tags; None where nothing was."""
    answer: str
    """What was answered; "" where a thought never ended."""
    start: int = 0
    """Where in the response the answer begins."""
    is_closed: bool = True
    """Whether the thought came to its end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reasoning:
    """What `--reasoning` says."""

    mode: Literal["auto", "off", "tag"]
    tag: ThoughtTag | None = None

    @classmethod
    def parse(cls, text: str) -> Reasoning:
        """Read a setting: `auto`, `off`, a name of `TAGS`, an opening tag, or both tags.

        Args:
            text: Such as `think`, `<scratchpad>` (which `</scratchpad>` closes), or `<<A>> <<B>>`.

        Raises:
            ConfigError: It is none of these.

        Example:
            >>> Reasoning.parse("[PLAN]").split("[PLAN]two steps[/PLAN]Done.").answer
            'Done.'
        """
        if text in ("auto", "off"):
            return cls(mode="auto" if text == "auto" else "off")
        for tag in TAGS:
            if text == tag.name or text in tag.opens:
                return cls(mode="tag", tag=tag)
        words = text.split()
        if len(words) == 1 and (found := re.fullmatch(r"([<\[])([^/<>\[\]\s]+)([>\]])", text)):
            words = [text, f"{found[1]}/{found[2]}{found[3]}"]
        if len(words) != 2 or words[0] == words[1]:
            raise ConfigError(
                "no such mark of a thought",
                where=argument("reasoning"),
                got=text[:_MAX_SHOWN],
                expected=f"auto, off, {', '.join(tag.name for tag in TAGS)}, or a tag such as "
                "<plan> or '<plan> </plan>'",
            )
        return cls(mode="tag", tag=ThoughtTag(name=text, opens=(words[0],), closes=(words[1],)))

    def __str__(self) -> str:
        """Return what `parse` reads."""
        return self.tag.name if self.tag is not None else self.mode

    def split(
        self, text: str, *, known: Sequence[ThoughtTag] = (), inside: ThoughtTag | None = None
    ) -> Thinking:
        """Tell the thought of a response from its answer.

        Args:
            text: The response, special tokens included.
            known: What the model's chat template speaks of: a closing tag alone is one then.
            inside: The tag that the chat template has opened before the response begins.

        Example:
            >>> made = Reasoning.parse("auto").split("<think>Twice two.</think>Four.")
            >>> made.thought, made.answer
            ('Twice two.', 'Four.')
            >>> Reasoning.parse("auto").split("<think>Well, that")
            Thinking(thought='Well, that', answer='', start=17, is_closed=False)
            >>> Reasoning.parse("auto").split("The tags are <think> and </think>.").thought is None
            True
        """
        if self.mode == "off":
            return Thinking(thought=None, answer=text)
        if self.tag is not None:
            known = (self.tag,)
            inside = self.tag if inside == self.tag else None
        if inside is not None:
            return _split(text, inside, is_inside=True)
        for tag in known if self.tag is not None else (*known, *TAGS):
            if tag.begins(text, is_known=tag in known):
                return _split(text, tag, is_inside=False)
        for tag in known:
            mark = next(_marks(text, tag, 0), None) if any(c in text for c in tag.closes) else None
            if mark is not None and not mark.opens:
                return _split(text, tag, is_inside=True)
        return Thinking(thought=None, answer=text)

    def answer(self, text: str) -> str:
        """Return the answer alone of a response that nothing else is known about.

        Example:
            >>> Reasoning.parse("auto").answer("[THINK]Hm.[/THINK]Yes.")
            'Yes.'
        """
        return self.split(text).answer

    def without_thoughts(self, messages: Sequence[Message]) -> tuple[Message, ...]:
        """Return a chat without the thoughts of earlier turns of the assistant.

        Example:
            >>> chat = [{"role": "assistant", "content": "<think>Hm.</think>Hello!"}]
            >>> Reasoning.parse("auto").without_thoughts(chat)
            ({'role': 'assistant', 'content': 'Hello!'},)
        """
        return tuple(
            {**turn, "content": self.answer(turn["content"])}
            if turn["role"] == "assistant"
            else turn
            for turn in messages
        )

    def split_message(self, message: Mapping[str, Any]) -> Thinking:
        """Tell thought from answer in a message of a service, whatever parser it has.

        Args:
            message: `choices[i].message` of a chat completion: the thought in `reasoning_content`
                or `reasoning`, in a part of its own, or in the text.

        Example:
            >>> message = {"reasoning_content": "Hm.", "content": "Yes."}
            >>> made = Reasoning.parse("auto").split_message(message)
            >>> made.thought, made.answer
            ('Hm.', 'Yes.')
        """
        content = message.get("content")
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        parts = [part for part in parts if isinstance(part, dict)]
        thoughts = [_text(message.get(name)) for name in _THOUGHT_FIELDS]
        thoughts.append("".join(_text(p) for p in parts if p.get("type") in _THOUGHT_PARTS))
        answer = "".join(_text(p) for p in parts if p.get("type") not in _THOUGHT_PARTS)
        # Some services send the same thought under two names.
        thought = max(thoughts, key=len)
        if thought and self.mode != "off":
            return Thinking(thought=thought, answer=answer, is_closed=bool(answer.strip()))
        return self.split(answer)


AUTO = Reasoning(mode="auto")
REASONING_MEANS = (
    "How a thought is marked, which is no part of an answer: auto, off, or a tag such as think or "
    "<plan>."
)
"""For flags and recipes."""


def tags_in(template: str) -> tuple[ThoughtTag, ...]:
    """Return the tags that a chat template speaks of.

    Args:
        template: Its source.
    """
    return tuple(tag for tag in TAGS if any(text in template for text in (*tag.opens, *tag.closes)))


def opened_by(prompt: str, tags: Sequence[ThoughtTag] = TAGS) -> ThoughtTag | None:
    """Return the tag that the end of a prompt opens; None where it opens none."""
    ended = prompt.rstrip()
    return next((tag for tag in tags if ended.endswith(tag.opens)), None)


@dataclass(frozen=True, slots=True)
class _Mark:
    start: int
    end: int
    opens: bool


def _marks(text: str, tag: ThoughtTag, start: int) -> Iterator[_Mark]:
    """Yield the tags of a text in their order, but for those between quotation marks."""
    pattern = "|".join(map(re.escape, sorted((*tag.opens, *tag.closes), key=len, reverse=True)))
    for found in re.compile(pattern).finditer(text, start):
        if not _is_quoted(text, found.start(), found.end()):
            yield _Mark(found.start(), found.end(), found[0] in tag.opens)


def _is_quoted(text: str, start: int, end: int) -> bool:
    """Whether equal quotation marks stand around a tag, of which the first one opens.

    After a word the mark closes: there the thought ends with a quotation, and the answer begins
    with another one.
    """
    mark = text[start - 1 : start]
    if mark != text[end : end + 1] or mark not in _QUOTES:
        return False
    before = text[start - 2 : start - 1] if start > 1 else ""
    return not (before.isalnum() or before == mark or before in set(".!?)"))


def _split(text: str, tag: ThoughtTag, *, is_inside: bool) -> Thinking:
    """Split a response that begins with a thought."""
    thoughts: list[str] = []
    place, begin = 0, 0 if is_inside else _opened(text, tag, 0)
    while begin is not None:
        end = _end(text, tag, begin)
        thoughts.append(_clean(text[begin : end.start if end else len(text)], tag))
        if end is None:
            thought = _joined(thoughts) or ""
            return Thinking(thought=thought, answer="", start=len(text), is_closed=False)
        place, begin = end.end, _opened(text, tag, end.end)
    answer = _clean(text[place:], tag)
    return Thinking(thought=_joined(thoughts), answer=answer, start=place)


def _opened(text: str, tag: ThoughtTag, place: int) -> int | None:
    """Return where a thought begins that is the next thing in a text; None where none is."""
    space = _SPACE.match(text, place)
    place = space.end() if space else place
    return next((place + len(o) for o in tag.opens if text.startswith(o, place)), None)


def _end(text: str, tag: ThoughtTag, begin: int) -> _Mark | None:
    """Return the tag that ends a thought; one that opens within is closed within."""
    depth, first = 1, None
    for mark in _marks(text, tag, begin):
        depth += 1 if mark.opens else -1
        first = first or (None if mark.opens else mark)
        if depth == 0:
            return mark
    # Nothing closes as often as it opens: an opening tag was mentioned, or written once more.
    return first


def _clean(text: str, tag: ThoughtTag) -> str:
    """Take white space and leftover marks off both ends."""
    text = text.strip()
    for _ in tag.leftovers:
        for mark in tag.leftovers:
            text = text.removeprefix(mark).removesuffix(mark).strip()
    return text


def _joined(thoughts: Sequence[str]) -> str | None:
    """Return all thoughts before the answer; None where they hold nothing."""
    return "\n\n".join(thought for thought in thoughts if thought) or None


def is_unanswered(row: Mapping[str, Any]) -> bool:
    """Whether the response of a row of a table is a thought and nothing after it."""
    return row.get("thought") is not None and not (row["response"] or "").strip()


def num_answer_tokens(row: Mapping[str, Any]) -> int | None:
    """Return how many tokens of a row of a table are the answer's; None where it has none."""
    tokens = row["completion_tokens"]
    return None if tokens is None else int(tokens) - (row.get("thought_tokens") or 0)


def _text(value: Any) -> str:
    """Return every text in a value, but for what names the kind of a part."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return "".join(map(_text, value))
    if isinstance(value, dict):
        return "".join(_text(one) for name, one in value.items() if name != "type")
    return ""
