"""How a figure looks and how it is stored: style, colours by role, SVG for files and for the page.

Every colour below has a role; in the page its hexadecimal value is replaced by the CSS variable of
that role, so that one drawing serves light and dark. Series colours are Okabe and Ito's (green and
purple darkened for contrast), told apart by colour-blind readers; each series has its own marker
besides.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

INK, MUTED, GRID, SURFACE, WASH = "#1f2328", "#5b626b", "#dcdfe3", "#fefefe", "#eef0f2"
BLUE, ORANGE, GREEN, PURPLE = "#0072b2", "#d55e00", "#007f5c", "#9c4f87"
ROLES = {
    INK: "ink", MUTED: "muted", GRID: "rule", SURFACE: "paper", WASH: "wash",
    BLUE: "blue", ORANGE: "orange", GREEN: "green", PURPLE: "purple",
}  # fmt: skip
GUARDSTYLES = ((GREEN, "s"), (PURPLE, "^"), (ORANGE, "v"), (BLUE, "P"))
WIDTH_INCHES = 7.2

STYLE: Any = {
    "font.family": "sans-serif",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "figure.facecolor": SURFACE,
    "savefig.facecolor": SURFACE,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "expo_ray",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """One finished figure."""

    name: str
    alt: str
    """What the figure shows, for those who do not see it."""
    svg: str
    """Standalone file, light colours."""
    png: bytes

    def inline(self) -> str:
        """Return the SVG element for the page: CSS colours, ids of its own, described."""
        svg = self.svg[self.svg.index("<svg") :]
        svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
        svg = re.sub(r'\bid="', f'id="{self.name}-', svg)
        svg = re.sub(r"url\(#", f"url(#{self.name}-", svg)
        svg = re.sub(r'href="#', f'href="#{self.name}-', svg)
        for colour, role in ROLES.items():
            svg = svg.replace(colour, f"var(--{role})")
        # The page scales the figure; a fixed size in points would not fit a phone.
        svg = re.sub(r'<svg ([^>]*?)height="[^"]*pt" ([^>]*?)width="[^"]*pt"', r"<svg \1\2", svg)
        return svg.replace("<svg ", '<svg role="presentation" focusable="false" ', 1)


@contextmanager
def canvas(rows: int, *, height: float) -> Iterator[tuple[Figure, Any]]:
    """Yield a figure of full page width and its stacked axes, in the house style."""
    with mpl.rc_context(STYLE):
        layout = ConstrainedLayoutEngine(h_pad=0.09)
        figure = Figure(figsize=(WIDTH_INCHES, height), layout=layout)
        yield figure, figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]


def finish(figure: Figure, name: str, alt: str) -> Drawing:
    """Store a figure; called inside the context that styled it."""
    svg, png = io.StringIO(), io.BytesIO()
    # Half of the drawing is the layout: once, not anew for each format.
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
    return Drawing(name=name, alt=alt, svg=svg.getvalue(), png=png.getvalue())
