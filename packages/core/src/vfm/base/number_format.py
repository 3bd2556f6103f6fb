"""Format numbers, units, intervals, differences, p-values and durations for reports and terminal tables."""

from __future__ import annotations

import math
from collections.abc import Sequence

MINUS = "\N{MINUS SIGN}"
NO_BREAK = "\N{NO-BREAK SPACE}"
DASH = "\N{EN DASH}"
# Factors to percentages of the units in percent. "points" is a difference of shares in percentage points.
PERCENT_UNITS = {"share": 100.0, "%": 1.0, "points": 100.0}


def number(value: object) -> str:
    """Format a table cell.

    Integers have separators, other numbers four digits, and None is a dash.
    """
    if value is None:
        return DASH
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value)
    # Above 1e15 a float no longer holds every whole number.
    if isinstance(value, int) or (value.is_integer() and 1e3 <= abs(value) < 1e15):
        text = f"{value:,.0f}"
    elif not math.isfinite(value) or value == 0 or 1e-3 <= abs(value) < 1e4:
        text = f"{value:.4g}"
    elif abs(value) < 1e15:
        text = f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.2e}"
    else:
        text = f"{value:.3e}"
    return text.replace("-", MINUS)


def quantity(value: float, unit: str = "") -> str:
    """Format a value with its unit. Shares become percentages."""
    symbol = "%" if unit in PERCENT_UNITS and unit != "points" else unit
    return f"{_bare(value, unit)}{NO_BREAK}{symbol}".rstrip(NO_BREAK)


def quantities(values: Sequence[float], unit: str = "") -> str:
    """Format several values, with the unit after the last."""
    return ", ".join([*(_bare(value, unit) for value in values[:-1]), quantity(values[-1], unit)])


def interval(low: float, high: float, unit: str = "") -> str:
    """Format the ends of an interval.

    Args:
        low: Lower end.
        high: Upper end.
        unit: Unit, after the upper end.
    """
    return f"{_bare(low, unit)} {DASH} {quantity(high, unit)}"


def _bare(value: float, unit: str) -> str:
    if unit in PERCENT_UNITS:
        return f"{value * PERCENT_UNITS[unit]:.1f}".replace("-", MINUS)
    return number(float(value))


def change(value: float, unit: str = "") -> str:
    """Format a difference with its sign. Differences of percentages are in percentage points."""
    if unit in PERCENT_UNITS:
        return f"{value * PERCENT_UNITS[unit]:+.1f}".replace("-", MINUS)
    return ("+" if value >= 0 else "") + number(float(value))


def p_value(value: float) -> str:
    """Format a p-value as `= 0.03` or `< 0.001`."""
    if value < 0.001:
        return f"<{NO_BREAK}0.001"
    return f"={NO_BREAK}{value:.2g}"


def duration(seconds: float) -> str:
    """Format seconds as `< 0.1 s`, `0.4 s`, `12 s`, `4 min 05 s` or `2 h 05 min`."""
    if seconds < 0.05:
        return f"<{NO_BREAK}0.1{NO_BREAK}s"
    # From here on, one decimal would be rounded to 10.0.
    if seconds < 9.95:
        return f"{seconds:.1f}{NO_BREAK}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest}{NO_BREAK}s"
    hours, minutes = divmod(minutes, 60)
    if hours == 0:
        return f"{minutes}{NO_BREAK}min {rest:02d}{NO_BREAK}s"
    return f"{hours}{NO_BREAK}h {minutes:02d}{NO_BREAK}min"
