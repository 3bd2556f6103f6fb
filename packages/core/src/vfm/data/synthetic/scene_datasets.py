"""Write the scattered scenes of `shapes.scenes` to WebDataset tars, with the objects of each sample in `json`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vfm.data.annotated.indexing import Wanted, import_annotations
from vfm.data.annotated.masks import as_rle, encode_mask, mask_box
from vfm.data.annotated.records import Classes, Label
from vfm.data.annotated.sample_records import SampleRecords
from vfm.data.layouts.layout import Layout
from vfm.data.synthetic.datasets import write_shards
from vfm.data.synthetic.federated import federate
from vfm.data.synthetic.render import encode
from vfm.data.synthetic.sampling import Stream, generator
from vfm.data.synthetic.scattered import (
    MIN_VISIBLE,
    Vocabulary,
    class_names,
    draw_scattered,
    label_of,
    sample_scattered,
)
from vfm.data.synthetic.stages import ShapesScenes
from vfm.data.synthetic.world import World
from vfm.interfaces import AnnotatedImages, Context

GROUND = "ground"


@dataclass(frozen=True)
class RenderedScene:
    """A sample, as JPEG bytes with its objects as a JSON value."""

    key: str
    image: bytes
    record: dict[str, Any]

    def members(self) -> dict[str, bytes]:
        """Encode the files of a WebDataset tar."""
        return {"jpg": self.image, "json": json.dumps(self.record).encode()}


def make_scenes(config: ShapesScenes, ctx: Context) -> AnnotatedImages:
    """Draw the scenes and index them. The ground is the last class, and has no instances."""
    render = partial(
        render_scenes,
        vocabulary=config.vocabulary,
        zipf=config.zipf,
        federated=config.federated,
        max_objects=config.max_objects,
        scale=config.scale,
    )
    shards = write_shards(config, ctx, render)
    names = class_names(config.world, config.vocabulary)
    count = len(names)
    classes = Classes([*names, GROUND], list(range(count + 1)), [True] * count + [False])
    labels: list[Label] = ["boxes", "masks"]
    if not config.federated:
        labels += ["semantic", "panoptic"]
    reader = SampleRecords(
        Layout("webdataset", [shard.path for shard in shards], ""),
        classes,
        labels,
        federated=config.federated,
        background=None if config.federated else count,
    )
    return import_annotations(
        reader, ctx, Wanted(classes=(), keep_empty=True, images=True, max_bad_fraction=0.0), "shapes.scenes"
    )


def render_scenes(
    world: World,
    seed: int,
    start: int,
    stop: int,
    *,
    vocabulary: Vocabulary,
    zipf: float,
    federated: bool,
    max_objects: int,
    scale: tuple[float, float],
) -> Iterator[RenderedScene]:
    """Yield samples with several objects. Each depends only on the seed and its number.

    Args:
        world: Distribution of the objects.
        seed: Seed of the samples.
        start: Number of the first sample.
        stop: Number after the last sample.
        vocabulary: Attributes that are part of a class.
        zipf: Exponent of the classes' frequencies.
        federated: Whether only some classes of an image are annotated, as in LVIS.
        max_objects: Largest number of objects.
        scale: Smallest and largest radius, in image widths.
    """
    num_classes = len(class_names(world, vocabulary))
    for index in range(start, stop):
        rng = generator(seed, Stream.SCATTERED, index)
        scene = sample_scattered(world, rng, zipf=zipf, max_objects=max_objects, scale=scale)
        drawn = draw_scattered(scene, world.image_size)
        objects = []
        for number, placed in enumerate(scene.objects):
            entry = _object(label_of(world, vocabulary, placed.look), drawn.owners == number)
            if entry["area"] > 0:
                objects.append(entry)
        lists: dict[str, Any] = {}
        if federated:
            labels = [entry["category_id"] for entry in objects]
            chosen = federate(labels, num_classes, generator(seed, Stream.FEDERATED, index))
            objects = [objects[number] for number in chosen.annotated]
            lists = {
                "neg_category_ids": chosen.negatives,
                "not_exhaustive_category_ids": chosen.not_exhaustive,
            }
        size = {"width": world.image_size, "height": world.image_size}
        record = {"image_id": index, **size, "annotations": objects, **lists}
        yield RenderedScene(f"{index:08d}", encode(drawn.pixels), record)


def _object(label: int, mask: np.ndarray[Any, np.dtype[np.bool_]]) -> dict[str, Any]:
    """Describe an object in COCO's form. It is ignored if too little of it is visible."""
    height, width = mask.shape
    counts = encode_mask(mask)
    area = int(mask.sum())
    left, top, right, bottom = mask_box(counts, height, width)
    return {
        "category_id": label,
        "bbox": [left, top, right - left, bottom - top],
        "segmentation": {**as_rle(counts, height, width), "counts": counts.decode()},
        "area": area,
        "iscrowd": 0,
        "ignore": int(area < MIN_VISIBLE),
    }
