"""Draw the patch features and the attention of an image encoder. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from vfm.api.inputs import (
    ENCODERS,
    AnyImage,
    AnyModel,
    image_list,
    image_names,
    open_device,
    open_encoder,
    read_images,
    with_folders,
)
from vfm.api.paths import AnyPath, as_place
from vfm.api.results import Results, as_table
from vfm.base import repeated
from vfm.eval import compute_patch_maps
from vfm.models import PooledVision
from vfm.models.oracle.record import recorded_differences


@dataclass(frozen=True, repr=False)
class Views(Results):
    """Drawings of images as a model sees them.

    Attributes:
        images: Names of the images.
        files: The PNG file of each.
        compared: How an imported model differed from the library that wrote it, or empty.
    """

    images: list[str]
    files: list[Path]
    compared: str = ""

    @property
    def title(self) -> str:
        """One line about the results."""
        return f"{len(self.files):,} images drawn"

    def table(self) -> Any:
        """Build an Arrow table with the columns image and file."""
        rows = [{"image": image, "file": str(file)} for image, file in zip(self.images, self.files, strict=True)]
        return as_table(rows, {"image": pa.string(), "file": pa.string()})


def view(
    model: AnyModel,
    images: AnyImage | Sequence[AnyImage],
    out: AnyPath,
    *,
    pretrained: str | None = None,
    device: str = "auto",
) -> Views:
    """Draw a model's patch features and attention, as `vfm view`.

    Args:
        model: A model as for `vfm.embed`.
        images: Files, folders of files, or PIL images.
        out: Folder to write PNG files to. Each shows an image, the principal components of its patch features, their
            similarity to the image feature, and the attention.
        pretrained: Tag of an open_clip name, or a file of weights.
        device: auto, cpu, cuda, cuda:1 or mps.

    Raises:
        UserError: If the model or an image does not exist, or the model has no patch tokens.
    """
    listed = with_folders(image_list(images))
    opened = read_images(listed)
    names = image_names(listed)
    encoder = open_encoder(model, pretrained, open_device(device))
    if isinstance(model, PooledVision):
        name = type(model.module).__name__
    else:
        name = str(getattr(model, "path", model))
    compared = "" if isinstance(model, ENCODERS) else recorded_differences(Path(name))
    folder = Path(as_place(out))
    folder.mkdir(parents=True, exist_ok=True)
    files = list(map(folder.joinpath, _file_names(names)))
    for file, maps in zip(files, compute_patch_maps(encoder, opened, names, name), strict=True):
        Image.fromarray(maps.sheet()).save(file)
    return Views(names, files, compared)


def _file_names(names: Sequence[str]) -> list[str]:
    """Name a PNG file for each image, with its number if another image has the same name."""
    stems = [Path(name).stem for name in names]
    twice = repeated(stems)
    return [f"{stem}-{number}.png" if stem in twice else f"{stem}.png" for number, stem in enumerate(stems)]
