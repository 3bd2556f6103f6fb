"""Text of user data on the page, also for text in manifests and panels of earlier versions."""

from __future__ import annotations

from vfm.base import redacted, visible


def shown(value: object) -> object:
    """Convert a value for the page. Texts lose credentials and raw control characters."""
    # Markup, a subtype of str, is written by the template, and has been converted already.
    if type(value) is not str:
        return value
    return visible(redacted(value))
