"""Names of the models that open_clip and timm can build or download, including vfm's. Imports both libraries."""

from __future__ import annotations

import open_clip
import timm

from vfm.models import small_models  # noqa: F401  (registers the small architectures)


def named_models(part: str) -> list[tuple[str, str, str]]:
    """List the models whose name contains a part, in any case.

    Returns:
        (name, library, pretrained tags) of each model.
    """
    tags: dict[tuple[str, str], list[str]] = {}  # by library and name
    for name in open_clip.list_models():
        tags["open_clip", name] = []
    for name, tag in open_clip.list_pretrained():
        tags.setdefault(("open_clip", name), []).append(tag)
    for name in timm.list_models():
        tags["timm", name] = []
    for full in timm.list_models(pretrained=True):
        name, _, tag = full.partition(".")
        tags.setdefault(("timm", name), []).append(tag or "yes")
    rows = []
    for (library, name), names in sorted(tags.items()):
        if part.lower() in name.lower():
            rows.append((name, library, ", ".join(names)))
    return rows
