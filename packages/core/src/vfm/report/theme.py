"""The colours of the page, each for a light and for a dark screen. The page has them as CSS variables."""

from __future__ import annotations

import re

# Okabe and Ito's hues, darkened on white and lightened on dark until text has a contrast of 4.5:1. The dashes
# distinguish the curves without colour.
SERIES = (
    ("#0072b2", "#58b4ea"),
    ("#c24a00", "#f0935a"),
    ("#007a5a", "#35c79b"),
    ("#a3488a", "#dd93c8"),
    ("#7a6400", "#d3b83f"),
    ("#444b54", "#b9c2cb"),
)
DASHES = ("", "6 2", "2 2", "8 2 2 2", "4 4", "1 2")
THEME = {
    "paper": ("#ffffff", "#14181d"),
    "wash": ("#f6f7f9", "#1d2329"),
    "ink": ("#1c2024", "#e5e9ed"),
    "muted": ("#5b6570", "#9da8b3"),
    "rule": ("#e3e7eb", "#2e363e"),
    "axis": ("#b8c0c8", "#4d5863"),
    "right": ("#00593f", "#4fd0a5"),
    **{f"series-{index}": pair for index, pair in enumerate(SERIES)},
}
_VARIABLES = {light: f"var(--{name})" for name, (light, _) in THEME.items()}


def light(name: str) -> str:
    """Look up a colour of the theme on a light screen."""
    return THEME[name][0]


def color(index: int) -> str:
    """Format the CSS colour of the series at `index`."""
    return f"var(--series-{index % len(SERIES)})"


def dash(index: int) -> str:
    """Look up the `stroke-dasharray` of the series at `index`. It is empty for a solid line.

    When the colours repeat, the dashes are shifted by one, so that no two of 36 series look alike.
    """
    return DASHES[(index + index // len(SERIES)) % len(DASHES)]


def themed(svg: str) -> str:
    """Replace the light colours in the styles of a drawing by the CSS variables of the theme."""
    return re.sub(
        r'style="[^"]*"',
        lambda style: re.sub("#[0-9a-f]{6}", lambda hue: _VARIABLES.get(hue[0], hue[0]), style[0]),
        svg,
    )
