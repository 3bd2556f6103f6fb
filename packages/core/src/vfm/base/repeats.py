"""Names that occur more than once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable


def repeated(names: Iterable[str]) -> list[str]:
    """List the names that occur more than once, each once."""
    return [name for name, count in Counter(names).items() if count > 1]
