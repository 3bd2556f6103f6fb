"""Models, datasets, images and class names that a user gives to `embed`, `predict` and `view`. Imports torch."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import torch
from PIL import Image
from pydantic import ValidationError

from vfm.api.paths import PATHS, AnyPath, as_place
from vfm.base import UserError, redacted
from vfm.data import BadSample, DatasetSpec, Source, decode_image, open_dataset
from vfm.data.indexing.indexing import Indexing
from vfm.data.layouts.layout import find_layout
from vfm.data.samples.images import to_rgb
from vfm.eval import load_encoder
from vfm.interfaces import FACTS_FILE, Artifact, ClipCheckpoint, Context, ImageDataset, Runtime, VisionCheckpoint
from vfm.models import (
    ClipModel,
    PooledVision,
    import_clip,
    import_vision,
    is_vision_source,
    vision_preprocess,
)
from vfm.storage import files
from vfm.storage.remote import is_remote
from vfm.train import prepare_device

A = TypeVar("A", bound=Artifact)
AnyEncoder = ClipModel | PooledVision
AnyModel = AnyPath | Artifact | AnyEncoder
AnyImage = AnyPath | Image.Image
ENCODERS = (ClipModel, PooledVision)  # for `isinstance`


def open_device(name: str) -> torch.device:
    """Return the device of a name, as in a stage's `runtime.device`.

    Raises:
        UserError: there is no such device.
    """
    try:
        return prepare_device(Runtime(device=name))
    except ValidationError:
        raise UserError(f"device {name}: choose from auto, cpu, cuda, cuda:0, mps") from None


def artifact_of(model: AnyModel, kind: type[A]) -> A | None:
    """Return the artifact that a user gives if it is of a kind, after comparing its files' hashes; else None."""
    if isinstance(model, ENCODERS):
        return None
    path = Path(as_place(model))
    found = Artifact.load(path, verify=False) if (path / FACTS_FILE).is_file() else None
    if not isinstance(found, kind):
        return None
    found.verify()
    return found


def open_encoder(model: AnyModel, pretrained: str | None, device: torch.device) -> AnyEncoder:
    """Return the model of an artifact, or of a source as `models.clip` and `models.vision` take it.

    A model that is already loaded is returned as it is.

    Raises:
        UserError: there is no such model, or its weights are missing.
    """
    if isinstance(model, ENCODERS):
        return model
    source = as_place(model)
    if (Path(source) / FACTS_FILE).is_file():
        artifact = Artifact.load(source)
        if not isinstance(artifact, ClipCheckpoint | VisionCheckpoint):
            raise UserError(f"{source}: expected a model, got a {type(artifact).__name__}")
        encoder: AnyEncoder = load_encoder(artifact, device)
        return encoder
    if is_vision_source(source, pretrained):
        module = import_vision(source, pretrained).to(device)
        return PooledVision(module, vision_preprocess(module))
    return import_clip(source, pretrained).to(device)


def full_name(model: AnyModel, pretrained: str | None) -> str:
    """Return a name that identifies a model from any working directory: name and tag, with absolute paths."""
    if isinstance(model, ENCODERS):
        return f"a loaded {type(model.module).__name__}"
    given = (part for part in (as_place(model), pretrained) if part)
    return " ".join(str(Path(part).resolve()) if Path(part).exists() else part for part in given)


def open_images(data: AnyPath | Artifact, folder: Path) -> Source:
    """Return the images of an artifact, or of a path as `data.pairs` takes it, with their captions, if they have any.

    Args:
        data: the artifact, its folder, or the path.
        folder: an index of the path's images is written here.

    Raises:
        UserError: the path does not exist, or has no supported format.
    """
    place = as_place(data)
    if (Path(place) / FACTS_FILE).is_file():
        return open_dataset(ImageDataset.load(place))
    layout = find_layout(place, "auto", None)
    spec = DatasetSpec(captions_optional=True)
    with suppress(UserError):  # a table without a column of captions, or a list of images
        spec = layout.with_defaults(spec, labels=False)
    indexing = Indexing(Context("embed", folder, folder, {}), spec, 1.0, place, verify=False)
    indexing.run(folder, layout.shards(folder, spec))
    return Source(folder)


def local_file(given: AnyPath) -> Path:
    """Return the path of a local file.

    Raises:
        UserError: it is an address, of which a `Path` would make another one.
    """
    if is_remote(os.fspath(given)):
        raise UserError(redacted(f"{os.fspath(given)}: expected a local file, got an address; download it first"))
    return Path(given)


def read_images(images: Sequence[AnyImage]) -> list[Image.Image]:
    """Return image files, and images that are already open, as RGB images.

    Raises:
        UserError: a file does not exist, or is not an image.
    """
    found = []
    for given in images:
        if isinstance(given, Image.Image):
            found.append(to_rgb(given))
            continue
        if not isinstance(given, PATHS):
            raise UserError(f"expected an image or the path of one, got a {type(given).__name__}")
        file = local_file(given)
        if file.is_dir():
            raise UserError(f"{file}: expected an image, got a folder; give the files in it")
        if not file.is_file():
            raise UserError(f"{file}: no such image")
        try:
            found.append(decode_image(file.read_bytes(), str(file)))
        except BadSample as bad:
            raise UserError(f"{file}: {bad.reason.replace('_', ' ')}") from None
    return found


def image_names(images: Sequence[AnyImage], start: int = 0) -> list[str]:
    """Return a name for each image: its path, or its place among the images, the first of which is at `start`."""
    return [f"image {at}" if isinstance(one, Image.Image) else os.fspath(one) for at, one in enumerate(images, start)]


def read_classes(classes: AnyPath | Sequence[str]) -> list[str]:
    """Return class names from a list, from a file, one per line, or from comma-separated words.

    Raises:
        UserError: there are fewer than two, or the file does not exist.
    """
    if isinstance(classes, PATHS):
        names = _written_classes(os.fspath(classes))
    else:
        names = list(classes) if isinstance(classes, Iterable) else []
    if len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise UserError(f"classes: expected at least two names, got {classes!r:.60}")
    return names


def _written_classes(given: str) -> list[str]:
    is_file = os.path.isfile(given)  # False, not an error, for a list that is too long for a file name
    if not is_file and given.endswith(".txt"):
        raise UserError(f"classes {given}: no such file")
    parts = files.read_text(given).splitlines() if is_file else given.split(",")
    return [part.strip() for part in parts if part.strip()]
