"""Small annotated datasets in the formats of the field, written for the tests of `vfm.data.annotated`."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vfm.data.annotated.stages import Annotated
from vfm.interfaces import AnnotatedImages, Artifact, Context, Stage


def run(stage: Stage, folder: Path) -> AnnotatedImages:
    """Run a stage in `folder` and load what it made."""
    directory, work = folder / "artifact", folder / "work"
    directory.mkdir(parents=True)
    work.mkdir()
    stage.run(Context(stage.name, directory, work, {}))
    made = Artifact.load(directory)
    assert isinstance(made, AnnotatedImages)
    return made


def read(folder: Path, path: Path | str, **fields: Any) -> AnnotatedImages:
    """Run `data.annotated` on a path."""
    settings = {"max_bad_fraction": 0.9, **fields}
    return run(Annotated(kind="data.annotated", name="set", path=str(path), **settings), folder)


def jpeg(width: int = 20, height: int = 10, colour: int = 90, **save: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (colour, colour, colour)).save(buffer, "JPEG", **save)
    return buffer.getvalue()


def write(path: Path, data: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def write_map(path: Path, values: Any, mode: str = "L") -> None:
    """Write a label map; with mode P, as a palette picture with colours of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(values, dtype=np.uint8), "L")
    if mode == "P":
        image = Image.frombytes("P", image.size, image.tobytes())
        image.putpalette([(7 * n) % 256 for n in range(768)])
    image.save(path)


def coco(
    folder: Path,
    annotations: Sequence[Mapping[str, Any]],
    *,
    images: Sequence[Mapping[str, Any]] | None = None,
    categories: Sequence[Mapping[str, Any]] = ({"id": 3, "name": "cat"}, {"id": 90, "name": "dog"}),
    pictures: int = 2,
) -> Path:
    """Write a dataset in COCO's layout: pictures 1, 2, ... of 20 x 10 pixels, and annotations with ids and an image."""
    listed = [{"id": n, "file_name": f"{n}.jpg", "width": 20, "height": 10} for n in range(1, pictures + 1)]
    for n in range(1, pictures + 1):
        write(folder / f"train/{n}.jpg", jpeg())
    filled = [{"id": n, "image_id": 1, "category_id": 3, **one} for n, one in enumerate(annotations, 1)]
    record = {"images": listed if images is None else images, "annotations": filled, "categories": categories}
    write(folder / "annotations/instances_train.json", json.dumps(record))
    return folder


def bright_parts(folder: Path) -> None:
    """Write six pictures of 20 x 12 pixels with a bright rectangle each, as panoptic segments and as label maps."""
    images, annotations = [], []
    for number in range(1, 7):
        mask = np.zeros((12, 20), dtype=bool)
        mask[2 : 4 + number, 3 : 8 + number] = True
        pixels = np.repeat(np.where(mask, 220, 20).astype(np.uint8)[..., None], 3, axis=-1)
        (folder / "set/train").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"set/train/{number}.png")
        ids = np.zeros((12, 20, 3), dtype=np.uint8)
        ids[..., 0] = np.where(mask, 1, 2)
        (folder / "set/annotations/panoptic_train").mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids).save(folder / f"set/annotations/panoptic_train/{number}.png")
        write_map(folder / f"maps/{number}.png", np.where(mask, 0, 1))
        images.append({"id": number, "file_name": f"{number}.png", "width": 20, "height": 12})
        segments = [{"id": 1, "category_id": 10}, {"id": 2, "category_id": 20}]
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
    categories = [{"id": 10, "name": "bright", "isthing": 1}, {"id": 20, "name": "dark", "isthing": 0}]
    record = {"images": images, "annotations": annotations, "categories": categories}
    write(folder / "set/annotations/panoptic_train.json", json.dumps(record))
