"""Comparison of an imported model with the library that wrote it, on eight fixed images and texts.

A wrong activation, epsilon, mean or tokenizer silently changes features. Here the source is also read by the library
that wrote it, if it is installed, and token ids, pixels and features of both are compared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vfm.base import UserError
from vfm.interfaces import Context
from vfm.models.clip.clip import ClipModel
from vfm.models.clip.model_sources import first_line
from vfm.models.oracle.peers import open_clip_differences, timm_differences, transformers_differences
from vfm.models.oracle.record import metric_name
from vfm.models.transformers_folders.encoders import MODEL_TYPES, transformers_record

# The largest difference between both libraries that counts as equal. Features and tokens: relative, by the L2 norm.
# Pixels: of plain images, in [0, 1]. Resized pixels: of images of other sizes, which PIL and torchvision resize with
# small differences, and whose central crop differs by a pixel where a margin is odd. Ids: share of texts.
TOLERANCES = {"features": 1e-3, "text_features": 1e-3, "tokens": 1e-3, "pixels": 1e-3, "resized_pixels": 0.15, "ids": 0}
# open_clip and timm resize by PIL, as we do.
PIL_TOLERANCES = {**TOLERANCES, "resized_pixels": 1e-3}


@dataclass(frozen=True)
class Origin:
    """A source as its library reads it.

    Attributes:
        library: transformers, open_clip or timm.
        source: Name of the architecture, or folder as the library names it.
        weights: File, or open_clip's tag. None: the weights of the source.
    """

    library: str
    source: str
    weights: str | None = None

    @classmethod
    def of_folder(cls, folder: Path) -> Origin | None:
        """Describe a folder in transformers' layout.

        Folders in another layout, and models that are not read here, give None.
        """
        is_known = (transformers_record(folder) or {}).get("model_type") in MODEL_TYPES
        return cls("transformers", str(folder)) if is_known else None

    def differences(self, model: ClipModel | nn.Module) -> dict[str, float]:
        """Compute the differences between an imported model and the library by name, as in `TOLERANCES`.

        The library's own errors pass through.
        """
        compare = _COMPARISONS[self.library]
        with torch.inference_mode():
            return compare(model, self.source, self.weights)


Compare = Callable[[Any, str, str | None], dict[str, float]]
_COMPARISONS: dict[str, Compare] = {
    "transformers": transformers_differences,
    "open_clip": open_clip_differences,
    "timm": timm_differences,
}


def check_import(ctx: Context, model: ClipModel | nn.Module, origin: Origin | None) -> None:
    """Compare a model with its library.

    The differences are logged as metrics, and so are part of the manifest.

    Args:
        ctx: The stage's context.
        model: The imported model, in evaluation mode.
        origin: Its source. Nothing is compared if it is None or its library is not installed.

    Raises:
        UserError: If a difference is above its tolerance.
    """
    if not origin or not find_spec(origin.library):
        return
    try:
        differences = origin.differences(model)
    except Exception as error:  # of the library, in many types; the import does not depend on it
        report = ctx.log if origin.weights else ctx.warn  # a file may have a layout that the library does not read
        report(f"not compared with {origin.library}: {first_line(error)}")
        return
    values = {}
    shown = []
    for name, value in differences.items():
        values[metric_name(origin.library, name)] = value
        shown.append(f"{name} {value:.1e}")
    ctx.emit("metrics", step=0, samples=0, values=values)
    ctx.log(f"differences to {origin.library}: {', '.join(shown)}")
    check_differences(differences, origin)


def check_differences(differences: dict[str, float], origin: Origin) -> None:
    """Refuse a model whose ids, pixels or features differ.

    Raises:
        UserError: If a difference is above its tolerance.
    """
    tolerances = TOLERANCES if origin.library == "transformers" else PIL_TOLERANCES
    for name, value in differences.items():
        if not value <= tolerances[name]:  # NaN is also refused
            theirs = f"{origin.library}'" if origin.library.endswith("s") else f"{origin.library}'s"
            raise UserError(
                f"{origin.weights or origin.source}: {name.replace('_', ' ')} differ from {theirs} by {value:.2g},"
                f" expected at most {tolerances[name]:g}; please report its configuration. compare: false imports it"
                " anyway"
            )
