"""Models, datasets, images and class names as arguments of `embed`, `predict` and `view`. Imports torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image
from pydantic import ValidationError

from vfm.api.paths import PATHS, AnyPath, as_place
from vfm.base import UserError, redacted, stripped
from vfm.data import BadSample, DatasetSpec, Source, decode_image, open_dataset
from vfm.data.indexing.indexing import Indexing
from vfm.data.layouts.folder import image_names as images_below
from vfm.data.layouts.layout import find_layout
from vfm.data.samples.images import to_rgb
from vfm.eval import load_encoder
from vfm.flow.requests.data_options import image_options
from vfm.interfaces import FACTS_FILE, Artifact, ClipCheckpoint, Context, ImageDataset, Runtime, VisionCheckpoint
from vfm.models import ClipModel, PooledVision, import_clip, import_vision, is_vision_source, vision_preprocess
from vfm.models.stages import source_and_tag
from vfm.storage import files
from vfm.storage.remote import is_remote
from vfm.train import prepare_device

A = TypeVar("A", bound=Artifact)
AnyEncoder = ClipModel | PooledVision
AnyModel = AnyPath | Artifact | AnyEncoder
AnyImage = AnyPath | Image.Image
ENCODERS = (ClipModel, PooledVision)  # for `isinstance`


def open_device(name: str) -> torch.device:
    """Open the device of a name, as in a stage's `runtime.device`.

    Raises:
        UserError: If there is no such device.
    """
    try:
        return prepare_device(Runtime(device=name))
    except ValidationError:
        raise UserError(f"device {name}: choose from auto, cpu, cuda, cuda:0, mps") from None


def artifact_of(model: AnyModel, kind: type[A]) -> A | None:
    """Load an artifact of the given type and verify its files.

    Returns:
        The artifact, or None for models of another form.
    """
    if isinstance(model, ENCODERS):
        return None
    path = Path(as_place(model))
    artifact = Artifact.load(path, verify=False) if (path / FACTS_FILE).is_file() else None
    if not isinstance(artifact, kind):
        return None
    artifact.verify()
    return artifact


def open_encoder(model: AnyModel, pretrained: str | None, device: torch.device) -> AnyEncoder:
    """Open the model of an artifact, or of any source of `models.clip` and `models.vision`.

    A loaded model is returned unchanged.

    Args:
        model: Artifact, folder, name or loaded model.
        pretrained: Tag or file of the weights.
        device: Device of the model.

    Raises:
        UserError: If there is no such model, or its weights are missing.
    """
    if isinstance(model, ENCODERS):
        return model
    source, pretrained = _source_of(model, pretrained)
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
    """Build a name that identifies a model from any working directory.

    It has the name and the tag of the model, with absolute paths.
    """
    if isinstance(model, ENCODERS):
        return f"a loaded {type(model.module).__name__}"
    names = []
    for part in _source_of(model, pretrained):
        if part:
            names.append(str(Path(part).resolve()) if Path(part).exists() else part)
    return " ".join(names)


def _source_of(model: AnyPath | Artifact, pretrained: str | None) -> tuple[str, str | None]:
    """Split a name with a tag, `ViT-B-32,openai`, unless the tag is given separately."""
    place = as_place(model)
    if pretrained:
        return (place, pretrained)
    return source_and_tag(place)


def open_images(data: AnyPath | Artifact, folder: Path, options: Mapping[str, Any] | None = None) -> Source:
    """Open the images of an artifact, or of a path in any format of `data.pairs`, with their captions if available.

    Args:
        data: The artifact, its folder, or the path.
        folder: Folder for an index of the path's images.
        options: Fields of `data.pairs` for a path: format, image_key, image_root and texts.

    Raises:
        UserError: If the path does not exist, or has no supported format, or an option does not fit.
    """
    path = as_place(data)
    if (Path(path) / FACTS_FILE).is_file():
        if options:
            raise UserError(f"{path}: expected no data-option for a saved dataset, got {', '.join(options)}")
        return open_dataset(ImageDataset.load(path))
    config = image_options(path, options or {})
    layout = find_layout(path, config.format, config.image_root)
    spec = DatasetSpec(image_key=config.image_key, texts=config.texts, captions_optional=True)
    with suppress(UserError):  # a table without a column of captions, or a list of images
        spec = layout.with_defaults(spec, labels=False)
    indexing = Indexing(Context("embed", folder, folder, {}), spec, 1.0, path, verify=False)
    indexing.run(folder, layout.shards(folder, spec))
    return Source(folder)


def local_file(path: AnyPath) -> Path:
    """Convert a path of a local file to a `Path`.

    Raises:
        UserError: If it is an address. `Path` would change it.
    """
    if is_remote(os.fspath(path)):
        raise UserError(redacted(f"{os.fspath(path)}: expected a local file, got an address; download it first"))
    return Path(path)


def image_list(images: AnyImage | Iterable[AnyImage]) -> list[AnyImage]:
    """List one or several images. A value of another type is listed as it is, and refused when it is read.

    Raises:
        UserError: If there are none.
    """
    one = isinstance(images, (*PATHS, Image.Image)) or not isinstance(images, Iterable)
    listed: list[AnyImage] = [images] if one else list(images)  # type: ignore[list-item, arg-type]
    if not listed:
        raise UserError("images: expected at least one, got none")
    return listed


def with_folders(images: Sequence[AnyImage]) -> list[AnyImage]:
    """Replace each folder by the images below it, sorted.

    Raises:
        UserError: If a path is an address, or a folder has no images.
    """
    listed: list[AnyImage] = []
    for image in images:
        folder = local_file(image) if isinstance(image, PATHS) else None
        if folder is not None and folder.is_dir():
            listed += map(folder.joinpath, images_below(str(folder)))
        else:
            listed.append(image)
    return listed


def read_images(images: Sequence[AnyImage]) -> list[Image.Image]:
    """Load image files, and convert open images, to RGB images.

    Raises:
        UserError: If a file does not exist, cannot be read, or is not an image.
    """
    loaded = []
    for image in images:
        if isinstance(image, Image.Image):
            loaded.append(to_rgb(image))
            continue
        if not isinstance(image, PATHS):
            raise UserError(f"expected an image or the path of one, got a {type(image).__name__}{_array_hint(image)}")
        file = local_file(image)
        if file.is_dir():
            raise UserError(f"{file}: expected an image, got a folder; give the files in it")
        if not file.is_file():
            raise UserError(f"{file}: no such image")
        try:
            loaded.append(decode_image(file.read_bytes(), str(file)))
        except BadSample as bad:
            raise UserError(f"{file}: {bad.reason.replace('_', ' ')}") from None
        except OSError as error:
            raise UserError(f"{file}: {error.strerror or error}") from None
    return loaded


def _array_hint(value: object) -> str:
    """Name the function that converts an array or a tensor, which has another one, to an image."""
    if isinstance(value, torch.Tensor):
        return "; make images of tensors with torchvision.transforms.functional.to_pil_image"
    return "; make images of arrays with PIL.Image.fromarray" if hasattr(value, "__array_interface__") else ""


def readable_images(
    images: Sequence[AnyImage], warn: Callable[[str], None]
) -> tuple[list[AnyImage], list[Image.Image]]:
    """Load images, and the images in folders. A file in a folder that is not an image is left out with a warning.

    Returns:
        The images and the paths of files, and the loaded images.

    Raises:
        UserError: If a file that was named does not exist or is not an image, or all files of the folders are not.
    """
    listed: list[AnyImage] = []
    loaded: list[Image.Image] = []
    skipped: list[str] = []
    for image in images:
        for one in with_folders([image]):
            try:
                loaded += read_images([one])
            except UserError as error:
                if one is image:
                    raise
                skipped.append(str(error))
            else:
                listed.append(one)
    if skipped and not loaded:
        raise UserError(skipped[0])
    if skipped:
        warn(f"skipped: {len(skipped)} of {len(skipped) + len(loaded)} images; the first is {skipped[0]}")
    return listed, loaded


def image_names(images: Sequence[AnyImage], start: int = 0) -> list[str]:
    """Name each image by its path, or by its number, counted from `start`."""
    names = []
    for number, image in enumerate(images, start):
        names.append(f"image {number}" if isinstance(image, Image.Image) else os.fspath(image))
    return names


def read_classes(classes: AnyPath | Sequence[str]) -> list[str]:
    """Read class names from a list, from a file with one per line, or from comma-separated words.

    Raises:
        UserError: If there are fewer than two names, or the file does not exist.
    """
    if isinstance(classes, PATHS):
        names = _written_classes(os.fspath(classes))
    else:
        names = list(classes) if isinstance(classes, Iterable) else []
    if len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise UserError(f"classes: expected at least two names, got {classes!r:.60}")
    return names


def _written_classes(classes: str) -> list[str]:
    is_file = os.path.isfile(classes)  # False, not an error, for a list that is too long for a file name
    if not is_file and classes.endswith(".txt"):
        raise UserError(f"classes {classes}: no such file")
    parts = files.read_text(classes).splitlines() if is_file else classes.split(",")
    return stripped(parts)
