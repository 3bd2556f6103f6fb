"""What a user names on the command line, opened: a model, a data set, pictures, classes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from vfm.artifacts import FACTS_FILE, Artifact, ClipCheckpoint, ImageDataset, VisionCheckpoint
from vfm.config import UserError
from vfm.data import DatasetSpec, Source, open_dataset
from vfm.stage import Context, Runtime

if TYPE_CHECKING:
    import torch
    from PIL import Image


def open_device(name: str) -> torch.device:
    """The device of that name, as a stage's `runtime.device`.

    Raises:
        UserError: there is none.
    """
    from vfm.train.dist import resolve_device

    try:
        return resolve_device(Runtime(device=name))
    except ValidationError:
        raise UserError(f"--device {name}: choose from auto, cpu, cuda, cuda:0, mps") from None


def open_model(source: str, pretrained: str | None, device: torch.device) -> Any:
    """A `ClipModel` or `PooledVision`: of an artifact, or of what `models.clip` and `models.vision` take as source.

    Raises:
        UserError: nothing by that name, or its weights are not there.
    """
    from vfm.eval.encode import PooledVision, load_encoder
    from vfm.models.importing import import_clip, import_vision
    from vfm.models.kinds import is_encoder
    from vfm.models.vision import vision_preprocess

    if (Path(source) / FACTS_FILE).is_file():
        artifact = Artifact.load(source)
        if not isinstance(artifact, ClipCheckpoint | VisionCheckpoint):
            raise UserError(f"{source}: a {type(artifact).__name__}; a model is wanted")
        return load_encoder(artifact, device)
    if is_encoder(source, pretrained):
        module = import_vision(source, pretrained).to(device)
        return PooledVision(module, vision_preprocess(module))
    return import_clip(source, pretrained).to(device)


def full_name(source: str, pretrained: str | None) -> str:
    """What tells a model from others, wherever one stands: its name and tag, paths resolved."""
    given = (part for part in (source, pretrained) if part)
    return " ".join(str(Path(part).resolve()) if Path(part).exists() else part for part in given)


def open_images(data: str, folder: Path) -> Source:
    """The images of an artifact, or of a path as `data.pairs` takes it, captions or not; its index goes into `folder`.

    Raises:
        UserError: nothing is there that can be read.
    """
    if (Path(data) / FACTS_FILE).is_file():
        return open_dataset(ImageDataset.load(data))
    from vfm.data.folder import image_names
    from vfm.data.image_list import ImageEntry, write_image_lists
    from vfm.data.indexing import Indexing
    from vfm.data.layout import find_layout

    layout, spec = find_layout(data, "auto", None), DatasetSpec()
    if layout.kind == "folder":
        names = ((root.rstrip("/"), name) for root in layout.paths for name in image_names(root))
        entries = (ImageEntry(name, f"{root}/{name}") for root, name in names)
        shards = ((shard, True) for shard in write_image_lists(folder, entries, spec))
    else:
        shards = ((shard, known) for shard, known in layout.shards(folder, spec))
    Indexing(Context("embed", folder, folder, {}), spec, 1.0, verify=False).run(folder, shards)
    return Source(folder)


def open_pictures(files: Sequence[Path]) -> list[Image.Image]:
    """Pictures by their files, RGB.

    Raises:
        UserError: one is not there, or is no image.
    """
    from vfm.data import BadSample
    from vfm.data.images import decode_image

    pictures = []
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: no such image")
        try:
            pictures.append(decode_image(file.read_bytes(), str(file)))
        except BadSample as bad:
            raise UserError(f"{file}: {bad.reason.replace('_', ' ')}") from None
    return pictures


def read_classes(classes: str) -> list[str]:
    """Names from a file, one a line, or from a list with commas.

    Raises:
        UserError: fewer than two, or a file that is not there.
    """
    file = Path(classes)
    if not file.is_file() and file.suffix == ".txt":
        raise UserError(f"{classes}: no such file of classes")
    parts = file.read_text(encoding="utf-8").splitlines() if file.is_file() else classes.split(",")
    names = [part.strip() for part in parts if part.strip()]
    if len(names) < 2:
        raise UserError(f"--classes {classes}: two or more names are needed, in a file (one a line) or with commas")
    return names
