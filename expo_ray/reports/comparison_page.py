"""`expo_ray.compare`, and its page: HTML like the other reports, or Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from expo_ray.checkpoints import atomic_write_text
from expo_ray.checkpoints.storages.local_output import require_writable_file
from expo_ray.errors import ConfigError, argument
from expo_ray.evaluation.comparison import BETTER, CANNOT_TELL, compare_results
from expo_ray.printable import markdown_code, markdown_text
from expo_ray.reports import wording
from expo_ray.reports.page_template import page_environment

SUFFIXES = (".html", ".md")
COLUMNS = ("task", "items", "A", "B", "B - A", "interval", "p", "verdict")
"""Headings of the short table."""


def compare(
    a: str | Path,
    b: str | Path,
    *,
    metric: str | None = None,
    item: str | None = None,
    cluster: str | None = None,
    lower_is_better: bool | None = None,
    confidence: float = 0.95,
    power: float = 0.8,
    output: Sequence[str | Path] = (),
) -> dict[str, Any]:
    """Compare two sets of results on the same items, in pairs.

    Right or wrong answers by McNemar's exact test, scores by a paired bootstrap, both with
    intervals; over documents where items share one; with Holm's correction over tasks.

    Args:
        a: Results of the first model, `PATH[#SCORE]`: a rewards or responses table, samples of
            lm-evaluation-harness, a log of inspect in JSON, annotations of AlpacaEval, or a CSV,
            JSONL, JSON or Parquet with a row per item; a folder of logs for several tasks.
        b: Results of the second one.
        metric: Name of the score, where a file has several and its address names none.
        item: Column of the items' names in a plain table.
        cluster: Column (field of the document, key of the metadata) that says which items belong
            together.
        lower_is_better: Whether lower scores are ahead, of all tasks; None decides by the metric's
            name: `wer`, `perplexity`, `loss` and their like are better low, all others high.
        confidence: Two-sided, of every interval.
        power: With which the detectable difference would be seen.
        output: Pages to write, each `.html` or `.md`.

    Returns:
        `{"schema_version", "a", "b", "tasks", "warnings", "settings"}`; differences are B minus A,
        and a task's verdict is `better`, `worse` or `cannot-tell`, said of B.

    Raises:
        ConfigError: A setting is out of range, or a page cannot be written.
        TableError: A file is malformed, or the two do not hold the same items, tasks and scores.

    Example:
        >>> found = expo_ray.compare("results.csv#aligned", "results.csv#candidate")
        >>> [task] = found["tasks"]
        >>> task["gained"], task["lost"], task["verdict"]
        (8, 1, 'better')
    """
    pages = [require_page(path) for path in output]
    found = compare_results(
        a,
        b,
        metric=metric,
        item=item,
        cluster=cluster,
        lower_is_better=lower_is_better,
        confidence=confidence,
        power=power,
    )
    for path in pages:
        text = comparison_markdown(found) if path.suffix == ".md" else comparison_html(found)
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(path, text)
    return found


def require_page(path: str | Path, suffixes: Sequence[str] = SUFFIXES) -> Path:
    """Return where a page goes.

    Raises:
        ConfigError: It cannot be written, or its name tells no format.
    """
    page = require_writable_file(path, where="output")
    if page.suffix not in suffixes:
        raise ConfigError(
            "the name of a page does not tell its format",
            where=argument("output"),
            got=str(path),
            expected=f"a name that ends in {' or '.join(suffixes)}",
        )
    return page


def headline(found: Mapping[str, Any]) -> str:
    """Return what the comparison says, in one line."""
    names = _names(found)
    tasks = found["tasks"]
    told = [task for task in tasks if task["verdict"] != CANNOT_TELL]
    if len(tasks) == 1 and told:
        word = "better" if told[0]["verdict"] == BETTER else "worse"
        return f"{names[1]} is {word} than {names[0]}"
    if not told:
        return f"{names[1]} and {names[0]} cannot be told apart"
    better = sum(task["verdict"] == BETTER for task in told)
    return (
        f"{names[1]} is better than {names[0]} on {better} of {len(tasks)} tasks, worse on "
        f"{len(told) - better}"
    )


def task_sentence(task: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """Return in words what one task says."""
    decimals = _decimals(task)
    gain = wording.signed(task["difference"], decimals)
    between = wording.interval(task["ci_low"], task["ci_high"], decimals)
    text = f"B differs from A by {gain} ({between}; {wording.p_value(task['p_adjusted'])})"
    text += f", ahead on {task['gained']:,} and behind on {task['lost']:,} of "
    text += f"{task['num_items']:,} items"
    if task["num_clusters"] is not None:
        text += f" of {task['num_clusters']:,} documents"
    text += "."
    if task["lower_is_better"]:
        told = settings["lower_is_better"] is not None
        text += f" Of {task['metric']} less is better{'' if told else ', by its name'}."
    if task["detectable"] is not None:
        text += (
            f" So many items show a true difference of "
            f"{wording.number(task['detectable'], decimals)} with {settings['power']:.0%} power."
        )
    if task["verdict"] == CANNOT_TELL and task["num_items_for_difference"]:
        text += (
            f" A difference as small as the one seen would need "
            f"{task['num_items_for_difference']:,} items."
        )
    return text


def comparison_rows(found: Mapping[str, Any]) -> list[list[str]]:
    """Return the cells of the short table, see `COLUMNS`."""
    rows = []
    for task in found["tasks"]:
        decimals = _decimals(task)
        rows.append(
            [
                task["task"] or task["metric"],
                f"{task['num_items']:,}",
                wording.number(task["mean_a"], decimals),
                wording.number(task["mean_b"], decimals),
                wording.signed(task["difference"], decimals),
                wording.interval(task["ci_low"], task["ci_high"], decimals),
                wording.p_value(task["p_adjusted"]).removeprefix("p = ").removeprefix("p "),
                task["verdict"].replace("-", " "),
            ]
        )
    return rows


def comparison_markdown(found: Mapping[str, Any]) -> str:
    """Return the page as Markdown."""
    lines = [f"# {markdown_text(headline(found))}", ""]
    for side in ("a", "b"):
        about = found[side]
        judge = f", judged by {markdown_code(about['judge'])}" if about["judge"] else ""
        lines.append(
            f"- {side.upper()}: {markdown_text(about['model'])} ({markdown_code(about['where'])}, "
            f"{about['kind']}{judge})"
        )
    lines += ["", f"| {' | '.join(COLUMNS)} |", f"|---|{'---:|' * 6}---|"]
    lines += [
        f"| {' | '.join(markdown_text(cell) for cell in row)} |" for row in comparison_rows(found)
    ]
    lines.append("")
    for task in found["tasks"]:
        name = f"**{markdown_text(task['task'])}**: " if task["task"] else ""
        lines += [f"{name}{task_sentence(task, found['settings'])}", ""]
    lines += [f"> {markdown_text(text)}\n" for text in found["warnings"]]
    lines += [_method(found), ""]
    return "\n".join(lines)


def comparison_html(found: Mapping[str, Any]) -> str:
    """Return the page as HTML that needs nothing but itself."""
    page = {
        "headline": headline(found),
        "sentence": task_sentence(found["tasks"][0], found["settings"])
        if len(found["tasks"]) == 1
        else _method(found),
        "found": found,
        "rows": [
            {**task, "decimals": _decimals(task), "words": task_sentence(task, found["settings"])}
            for task in found["tasks"]
        ],
        "interval": f"{found['settings']['confidence']:.0%} interval",
        "method": _method(found),
    }
    return page_environment().get_template("comparison.html.j2").render(page)


def _method(found: Mapping[str, Any]) -> str:
    tests = {task["test"] for task in found["tasks"]}
    words = []
    if "mcnemar" in tests:
        words.append("right and wrong answers by McNemar's exact test and Tango's interval")
    if "bootstrap" in tests:
        over = "documents" if any(t["num_clusters"] for t in found["tasks"]) else "items"
        words.append(f"scores by a paired bootstrap over {over}")
    text = f"Compared in pairs: {'; '.join(words)}."
    if len(found["tasks"]) > 1:
        text += f" P-values allow for {len(found['tasks'])} tasks (Holm)."
    return text


def _names(found: Mapping[str, Any]) -> tuple[str, str]:
    names = found["a"]["model"], found["b"]["model"]
    return names if names[0] != names[1] else ("A", "B")


def _decimals(task: Mapping[str, Any]) -> int:
    width = (task["ci_high"] or 0.0) - (task["ci_low"] or 0.0)
    return 3 if not width else 2 if width > 5 else 3 if width > 0.01 else 4
