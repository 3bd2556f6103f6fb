"""Find the architecture of timm that a state dict fits, by the names and shapes of its tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import timm
import torch
from torch import Tensor

from vfm.models import small_models  # noqa: F401  (registers the small architectures)
from vfm.models.weights import shapes_of

MAX_TRIED = 40  # architectures whose shapes are compared, at up to a second each
SIZES = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge"}  # of plain ViTs, by width
PATCHES = "patch_embed.proj.weight"


def timm_architecture(tensors: Mapping[str, Tensor]) -> str | None:
    """Find the shortest name of timm with these tensors, whatever the number of its classes.

    Returns:
        The name, or None if timm has no such encoder.
    """
    shapes = shapes_of(tensors)
    tried = 0
    for family in _families(tensors):
        for name in family:
            tried += 1
            if tried > MAX_TRIED:
                return None
            head = _head(name)
            classes = shapes.get(f"{head}.weight", (0,))[0]
            built = _shapes_of(name, classes)
            if built == shapes:
                return name
            if not _alike(built, shapes):
                break  # the other architectures of this module have other layers too
    return None


def _families(tensors: Mapping[str, Tensor]) -> Iterator[Sequence[str]]:
    """Yield the names of each module of timm whose first layer is among the tensors, short names first."""
    families: dict[str, list[str]] = {}
    for name in timm.list_models():
        config = timm.get_pretrained_cfg(name)
        first = config.first_conv if config else None
        first = first if isinstance(first, str) else next(iter(first or ()), "")
        if f"{first}.weight" in tensors and not name.startswith("test_") and _fits_name(name, tensors):
            families.setdefault(timm.models.model_entrypoint(name).__module__, []).append(name)
    mark = _mark(tensors)

    def order(name: str) -> tuple[bool, int, str]:
        return mark not in name, len(name), name

    ordered = [sorted(names, key=order) for names in families.values()]
    yield from sorted(ordered, key=lambda names: order(names[0]))


def _mark(tensors: Mapping[str, Tensor]) -> str:
    """Write the width and the patch size of a ViT as in its name, such as `vit_tiny_patch16`.

    Other encoders have no mark ("").
    """
    if PATCHES not in tensors or tensors[PATCHES].ndim != 4:
        return ""
    width, _, patch, _ = tensors[PATCHES].shape
    return f"vit_{SIZES[width]}_patch{patch}" if width in SIZES else ""


def _fits_name(name: str, tensors: Mapping[str, Tensor]) -> bool:
    """Compare the patch size and the width in the name of a ViT with the first layer."""
    if PATCHES not in tensors or tensors[PATCHES].ndim != 4:
        return True
    width, _, patch, _ = tensors[PATCHES].shape
    named = re.search(r"patch(\d+)", name)
    if named and int(named[1]) != patch:
        return False
    size = next((word for word in SIZES.values() if f"_{word}_" in name), None)
    return not (name.startswith(("vit", "deit", "eva")) and size and SIZES.get(width) != size)


def _head(name: str) -> str:
    config = timm.get_pretrained_cfg(name)
    classifier = (config and config.classifier) or "head"
    return classifier if isinstance(classifier, str) else classifier[0]


def _shapes_of(name: str, classes: int) -> dict[str, list[int]]:
    """Build an architecture without memory, and list its shapes.

    There are none if it cannot be built so.
    """
    try:
        with torch.device("meta"):
            model = timm.create_model(name, num_classes=classes)
    except Exception:  # each architecture has its own reasons
        return {}
    return shapes_of(model.state_dict())


def _alike(built: Mapping[str, object], shapes: Mapping[str, object]) -> bool:
    """Check whether most names of layers are the same, whatever their numbers."""
    first = set(map(_without_numbers, built))
    second = set(map(_without_numbers, shapes))
    return 2 * len(first & second) > len(first | second)


def _without_numbers(name: str) -> str:
    return re.sub(r"\d+", "N", name)
