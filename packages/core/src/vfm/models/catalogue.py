"""Names of the models that open_clip and timm can build or download, ours among them. Imports both."""

from __future__ import annotations

import open_clip
import timm

from vfm.models import small_models  # noqa: F401  (registers the small architectures)


def named_models(part: str) -> list[tuple[str, str, str]]:
    """Return the models with a part of a name, in any case: (name, library, pretrained tags)."""
    tags: dict[str, list[str]] = {name: [] for name in open_clip.list_models()}
    for name, tag in open_clip.list_pretrained():
        tags.setdefault(name, []).append(tag)
    found = [(name, "open_clip", ", ".join(of_name)) for name, of_name in sorted(tags.items())]
    weights: dict[str, list[str]] = {name: [] for name in timm.list_models()}
    for full in timm.list_models(pretrained=True):
        name, _, tag = full.partition(".")
        weights.setdefault(name, []).append(tag or "yes")
    found += [(name, "timm", ", ".join(of_name)) for name, of_name in sorted(weights.items())]
    return [row for row in found if part.lower() in row[0].lower()]
