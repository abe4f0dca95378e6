"""The evidence for a chosen alpha, in the model card that extrapolation wrote."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from expo_ray.checkpoints import atomic_write_bytes, atomic_write_json, atomic_write_text
from expo_ray.checkpoints.digests import digest_of
from expo_ray.checkpoints.storages.storage import RECORD_NAME
from expo_ray.errors import ConfigError
from expo_ray.extrapolation.outputs.record import digest_algorithm, is_as_sealed, sealed
from expo_ray.json_text import parse_json
from expo_ray.reports import wording


def render_model_card(checkpoint_dir: str | Path, selection: Mapping[str, Any]) -> Path:
    """Write the "Evidence" section of a checkpoint's README.md, in place of an earlier one.

    The receipt of README.md in expo_ray.json follows; nothing else changes.

    Args:
        checkpoint_dir: A local checkpoint folder with the README.md that extrapolation wrote.
        selection: The content of selection.json.

    Returns:
        The path of README.md.

    Raises:
        ConfigError: The folder has no README.md.
    """
    return put_section(checkpoint_dir, "evidence", _section(selection))


def put_section(checkpoint_dir: str | Path, name: str, content: str) -> Path:
    """Write a section of a checkpoint's README.md, in place of an earlier one of that name.

    Args:
        checkpoint_dir: A local checkpoint folder with the README.md that extrapolation wrote.
        name: Of the section, in the comments around it.
        content: Markdown.

    Returns:
        The path of README.md.

    Raises:
        ConfigError: The folder has no README.md.
    """
    card = Path(checkpoint_dir) / "README.md"
    if not card.is_file():
        raise ConfigError("the checkpoint has no model card", where=card)
    begin, end = (f"<!-- expo_ray {name}: {mark} -->" for mark in ("begin", "end"))
    section = f"{begin}\n{content}\n{end}\n"
    text = card.read_text(encoding="utf-8")
    before, found, rest = text.partition(begin)
    if found:
        after = rest.partition(end)[2].removeprefix("\n")
        text = before + section + after
    else:
        text = f"{text.rstrip()}\n\n{section}"
    atomic_write_text(card, text)
    _update_receipt(card)
    return card


def _update_receipt(card: Path) -> None:
    """Let the record of the checkpoint speak of the new card, so that `verify` still agrees."""
    file = card.parent / RECORD_NAME
    if not file.is_file():
        return
    data = file.read_bytes()
    record = parse_json(data)
    was_as_sealed = is_as_sealed(data, record)
    content = card.read_bytes()
    for entry in record.get("files", ()):
        if entry["name"] == card.name:
            entry["bytes"] = len(content)
            digest = digest_of(content, digest_algorithm(record))
            if "digest" in entry:
                entry["digest"] = digest
            else:  # schema 1
                entry["sha256"] = digest.rpartition(":")[2]
    if was_as_sealed:
        atomic_write_bytes(file, sealed(record))
    else:  # a record that was altered must not become a valid one
        atomic_write_json(file, record)


def _section(selection: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=PackageLoader("expo_ray.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    decimals = wording.decimals_for(selection)
    candidates = sorted(selection["candidates"], key=lambda c: float(c["alpha"]))
    rows = [
        {
            "alpha": wording.format_alpha(c["alpha"]),
            "reward": wording.number(c["mean_reward"], decimals),
            "gain": wording.signed(c["gain"], decimals),
            "interval": wording.interval(c["gain_ci_low"], c["gain_ci_high"], decimals),
            "tokens": wording.number(c["mean_tokens"], 1),
            "truncated": wording.percent(c["truncation_rate"]),
            "standing": _one_line(wording.standing(selection, c)),
        }
        for c in candidates
    ]
    template = environment.get_template("evidence.md.j2")
    return template.render(
        interval=wording.interval_name(selection),
        sentence=wording.verdict_sentence(selection),
        reason=_one_line(str(selection.get("reason", ""))),
        rows=rows,
    ).strip()


def _one_line(text: str) -> str:
    """Keep free text from breaking out of its table cell or paragraph."""
    return re.sub(r"\s+", " ", text).replace("|", "/").strip()
