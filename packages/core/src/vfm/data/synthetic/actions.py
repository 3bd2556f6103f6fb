"""Actions of the moving world. A quantity moves along a circle, forwards or backwards.

On a circle every state is equally likely at every time, in both directions, so no single frame reveals the action.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from vfm.data.synthetic.scene import DIRECTED, Shape

Action = Literal[
    "left", "right", "up", "down", "grow", "shrink", "turn right", "turn left", "appear", "vanish"
]  # fmt: skip
ACTIONS: tuple[Action, ...] = get_args(Action)
PAIRS: tuple[tuple[Action, Action], ...] = (
    ("right", "left"), ("down", "up"), ("grow", "shrink"), ("turn right", "turn left"), ("appear", "vanish"),
)  # fmt: skip
"""Forwards and backwards along one circle."""
REVERSED: dict[Action, Action] = dict(PAIRS) | {second: first for first, second in PAIRS}


def quantity_of(action: Action) -> tuple[int, int]:
    """Find the number of an action's quantity in `PAIRS`, and its direction, 1 or -1."""
    number = next(number for number, pair in enumerate(PAIRS) if action in pair)
    direction = 1 if PAIRS[number][0] == action else -1
    return number, direction


def turning_shapes(shapes: Iterable[Shape]) -> tuple[Shape, ...]:
    """Select the shapes whose rotation is visible."""
    return tuple(shape for shape in shapes if shape in DIRECTED)
