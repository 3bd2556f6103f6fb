"""Models, datasets, images and class names that a user gives to `vfm embed`, `predict` and `view`. Imports torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from pydantic import ValidationError

from vfm import files
from vfm.artifacts import FACTS_FILE, Artifact, ClipCheckpoint, ImageDataset, VisionCheckpoint
from vfm.config import UserError
from vfm.data import BadSample, DatasetSpec, Source, decode_image, open_dataset
from vfm.data.indexing import Indexing
from vfm.data.layout import find_layout
from vfm.eval import load_encoder
from vfm.models import ClipModel, PooledVision, import_clip, import_vision, is_vision_source, vision_preprocess
from vfm.stage import Context, Runtime
from vfm.train import prepare_device


def open_device(name: str) -> torch.device:
    """Return the device of a name, as in a stage's `runtime.device`.

    Raises:
        UserError: there is no such device.
    """
    try:
        return prepare_device(Runtime(device=name))
    except ValidationError:
        raise UserError(f"--device {name}: choose from auto, cpu, cuda, cuda:0, mps") from None


def open_encoder(source: str, pretrained: str | None, device: torch.device) -> ClipModel | PooledVision:
    """Return the model of an artifact, or of a source as `models.clip` and `models.vision` take it.

    Raises:
        UserError: there is no such model, or its weights are missing.
    """
    if (Path(source) / FACTS_FILE).is_file():
        artifact = Artifact.load(source)
        if not isinstance(artifact, ClipCheckpoint | VisionCheckpoint):
            raise UserError(f"{source}: expected a model, got a {type(artifact).__name__}")
        encoder: ClipModel | PooledVision = load_encoder(artifact, device)
        return encoder
    if is_vision_source(source, pretrained):
        module = import_vision(source, pretrained).to(device)
        return PooledVision(module, vision_preprocess(module))
    return import_clip(source, pretrained).to(device)


def full_name(source: str, pretrained: str | None) -> str:
    """Return a name that identifies a model from any working directory: name and tag, with absolute paths."""
    given = (part for part in (source, pretrained) if part)
    return " ".join(str(Path(part).resolve()) if Path(part).exists() else part for part in given)


def open_images(data: str, folder: Path) -> Source:
    """Return the images of an artifact, or of a path as `data.pairs` takes it, with or without captions.

    Args:
        data: the artifact's folder, or the path.
        folder: an index of the path's images is written here.

    Raises:
        UserError: the path does not exist, or has no supported format.
    """
    if (Path(data) / FACTS_FILE).is_file():
        return open_dataset(ImageDataset.load(data))
    layout, spec = find_layout(data, "auto", None), DatasetSpec()
    Indexing(Context("embed", folder, folder, {}), spec, 1.0, verify=False).run(folder, layout.shards(folder, spec))
    return Source(folder)


def read_images(paths: Sequence[Path]) -> list[Image.Image]:
    """Return image files as RGB images.

    Raises:
        UserError: a file does not exist, or is not an image.
    """
    images = []
    for file in paths:
        if not file.is_file():
            raise UserError(f"{file}: no such image")
        try:
            images.append(decode_image(file.read_bytes(), str(file)))
        except BadSample as bad:
            raise UserError(f"{file}: {bad.reason.replace('_', ' ')}") from None
    return images


def read_classes(classes: str) -> list[str]:
    """Return class names from a file, one per line, or from a comma-separated list.

    Raises:
        UserError: there are fewer than two, or the file does not exist.
    """
    is_file = os.path.isfile(classes)  # False, not an error, for a list that is too long for a file name
    if not is_file and classes.endswith(".txt"):
        raise UserError(f"--classes {classes}: no such file")
    parts = files.read_text(classes).splitlines() if is_file else classes.split(",")
    names = [part.strip() for part in parts if part.strip()]
    if len(names) < 2:
        raise UserError(f"--classes {classes}: expected at least two names, in a file (one per line) or with commas")
    return names
