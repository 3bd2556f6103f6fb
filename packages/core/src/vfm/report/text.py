"""Text of users' data on the page, which also shows what earlier versions left in manifests and panels."""

from __future__ import annotations

from vfm.base import redacted, visible


def shown(value: object) -> object:
    """Return a value as the page shows it: in text, without credentials and raw control characters."""
    # Markup, a subtype, is the template's own: it has been through here.
    return visible(redacted(value)) if type(value) is str else value
