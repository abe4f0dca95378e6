"""The floors of a storey for the documentation: a picture (SVG) and a table.

Both come from the code: the picture from the imports that are really there, the table from what
each box says of itself. The picture is a building with the ground at the bottom; beside it stands,
for every box, how many imports it takes from which box below. Nothing can stand right of the
stairs: no import runs up.

`python -m tests.floors_picture` writes the tables into `docs/architecture.md` again.
"""

from __future__ import annotations

import ast
import re
from html import escape

from tests.floors import FLOORS, ROOT, arrows

_ROW, _LABEL, _CELL, _GAP = 26, 150, 26, 10
_FILLS = ("#e8eef7", "#f6efe3")
PAGE = ROOT / "docs" / "architecture.md"
_PLACE = re.compile(r"(?s)<!-- table: (\S+) -->\n(.*?)(?=<!-- end of table -->)")
_INK, _DOT, _LINE = "#1f2933", "#2f6db3", "#d5dbe3"


def draw(storey: str) -> str:
    """Return the SVG of one storey of `FLOORS`."""
    boxes = [box for floor in FLOORS[storey] for box in floor]
    level = {box: number for number, floor in enumerate(FLOORS[storey]) for box in floor}
    counts = {pair: len(found) for pair, found in arrows(storey).items()}
    left, height = _LABEL + _GAP, len(boxes) * _ROW
    row = {box: (len(boxes) - 1 - i) * _ROW for i, box in enumerate(boxes)}
    column = {box: left + i * _CELL for i, box in enumerate(boxes)}
    parts = []
    for box in boxes:
        parts += [
            _rect(0, row[box], _LABEL, _ROW - 2, _FILLS[level[box] % 2]),
            _text(_LABEL / 2, row[box] + _ROW / 2 + 3, box),
            _rect(column[box], row[box], _CELL - 2, _ROW - 2, _LINE),
        ]
        name = _text(0, 0, box, anchor="end")
        x, y = column[box] + _CELL / 2, height + 12
        parts.append(f'<g transform="translate({x} {y}) rotate(-50)">{name}</g>')
    for (source, target), count in sorted(counts.items()):
        x, y = column[target] + _CELL / 2 - 1, row[source] + _ROW / 2 - 1
        radius = min(_CELL / 2 - 2, 5 + count**0.5)
        title = f"<title>{source} imports {target} {count} times</title>"
        dot = f'<circle cx="{x}" cy="{y}" r="{radius:.1f}" fill="{_DOT}">{title}</circle>'
        parts += [dot, _text(x, y + 3.5, str(count), size=9, fill="white")]
    width = left + len(boxes) * _CELL
    head = f'xmlns="http://www.w3.org/2000/svg" viewBox="-10 -10 {width + 20} {height + 110}"'
    background = '<rect x="-10" y="-10" width="100%" height="100%" fill="white"/>'
    return f'<svg {head} font-family="sans-serif">{background}{"".join(parts)}</svg>\n'


def table(storey: str) -> str:
    """Return a Markdown table of the boxes, the ground first: what they say of themselves."""
    rows = []
    for level, box in ((i, box) for i, floor in enumerate(FLOORS[storey]) for box in floor):
        place = ROOT.joinpath(*storey.split("."), box)
        is_folder = place.is_dir()
        file = place / "__init__.py" if is_folder else place.with_suffix(".py")
        said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        name = f"{box}/" if is_folder else f"{box}.py"
        rows.append(f"| {level} | `{name}` | {' '.join(said.partition(chr(10) * 2)[0].split())} |")
    return "\n".join(["| floor | box | what lives there |", "|---:|---|---|", *rows, ""])


def with_tables(page: str) -> str:
    """Return a page with the table of each storey in its place."""
    return _PLACE.sub(lambda found: f"<!-- table: {found[1]} -->\n{table(found[1])}", page)


def _rect(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="3" fill="{fill}"/>'


def _text(
    x: float, y: float, text: str, *, anchor: str = "middle", size: int = 12, fill: str = _INK
) -> str:
    place = f'x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" fill="{fill}"'
    return f"<text {place}>{escape(text)}</text>"


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text("utf-8")), "utf-8")
