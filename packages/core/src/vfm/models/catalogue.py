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
    clip_tags: dict[str, list[str]] = {name: [] for name in open_clip.list_models()}
    for name, tag in open_clip.list_pretrained():
        clip_tags.setdefault(name, []).append(tag)
    rows = []
    for name, tags in sorted(clip_tags.items()):
        rows.append((name, "open_clip", ", ".join(tags)))
    timm_tags: dict[str, list[str]] = {name: [] for name in timm.list_models()}
    for full in timm.list_models(pretrained=True):
        name, _, tag = full.partition(".")
        timm_tags.setdefault(name, []).append(tag or "yes")
    for name, tags in sorted(timm_tags.items()):
        rows.append((name, "timm", ", ".join(tags)))
    return [row for row in rows if part.lower() in row[0].lower()]
