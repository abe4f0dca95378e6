"""Reading YAML that others wrote: whatever is wrong with it is a ValueError, in few words.

A short document of aliases within aliases stands for one of billions of values; nesting ends in a
RecursionError. Both are measured before any value is made.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import yaml

from expo_ray.json_text import MAX_DEPTH

MAX_CHARACTERS = 4 * 2**20
"""Longer than the rules of any model; the parser needs a second for a tenth of it."""
MAX_NODES = 200_000
"""Values of a document, every alias counted as what it stands for."""


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML document of plain types.

    Args:
        text: The document.

    Raises:
        ValueError: It is malformed, too long, nested too deeply, or too large with its aliases; or
            a mapping has a key twice.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"the YAML has {len(text)} characters, more than {MAX_CHARACTERS}")
    try:
        with _loader(text) as loader:
            node = loader.get_single_node()
            if node is None:
                return None
            _require_small(node)
            return loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("the YAML is nested too deeply") from error


@contextlib.contextmanager
def _loader(text: str) -> Iterator[yaml.SafeLoader]:
    loader = yaml.SafeLoader(text)  # looks at every character
    try:
        yield loader
    finally:
        loader.dispose()


def _require_small(root: Any) -> None:
    level, num_nodes = [root], 0
    for _ in range(MAX_DEPTH):
        num_nodes += len(level)
        if num_nodes > MAX_NODES:
            raise ValueError(f"the YAML stands for more than {MAX_NODES} values, aliases counted")
        for node in level:
            _require_single_keys(node)
        level = [inner for node in level for inner in _inside(node)]
        if not level:
            return
    raise ValueError(f"the YAML is nested more than {MAX_DEPTH} deep")


def _require_single_keys(node: Any) -> None:
    if not isinstance(node, yaml.MappingNode):
        return
    keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one mapping, the first unread")


def _inside(node: Any) -> list[Any]:
    if isinstance(node, yaml.MappingNode):
        return [part for pair in node.value for part in pair]
    return list(node.value) if isinstance(node, yaml.SequenceNode) else []
