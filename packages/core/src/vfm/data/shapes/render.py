"""Samples of the made world as bytes: sample i of a seed is the same whatever the shard, the process or the order."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from vfm.data.shapes.captions import Caption, sample_caption
from vfm.data.shapes.draw import draw
from vfm.data.shapes.pairs import Pair, sample_pair
from vfm.data.shapes.sampling import generator, sample_scene
from vfm.data.shapes.world import World

# Streams of random numbers. Captions have one of their own: other caption shares leave the pictures as they are.
POOL, CAPTIONS, CLASSES, PAIRS = range(4)
IMAGE_SUFFIX = "jpg"


@dataclass(frozen=True)
class Sample:
    """One picture of a data set.

    Attributes:
        key: name of its files in a tar.
        image: JPEG bytes.
        texts: captions by the language on their label.
        label: its class, an index into `class_names`.
        facts: the scene and what the captions tell, JSON values.
    """

    key: str
    image: bytes
    texts: dict[str, list[str]]
    label: int
    facts: dict[str, Any]


def class_names(world: World) -> list[str]:
    """Names of the zero-shot classes, "red star", in the order of `World.combinations`."""
    return [f"{colour} {shape}" for shape, colour in world.combinations]


def render_shard(world: World, seed: int, start: int, stop: int) -> Iterator[Sample]:
    """Samples `start` to `stop` of the pool of image-text pairs; each depends on the seed and its number alone."""
    for index in range(start, stop):
        scene = sample_scene(world, generator(seed, POOL, index))
        rng = generator(seed, CAPTIONS, index)
        captions = {
            label: [sample_caption(world, scene, rng, language=label) for _ in range(world.captions_per_image)]
            for label in world.languages
        }
        yield Sample(
            key=f"{index:08d}",
            image=encode(draw(scene, world.image_size)),
            texts={label: [caption.text for caption in given] for label, given in captions.items()},
            label=world.label(scene.shape, scene.colour),
            facts={
                "scene": scene.facts(),
                "captions": {
                    label: [_caption_facts(caption) for caption in given] for label, given in captions.items()
                },
            },
        )


def render_labeled(world: World, seed: int, start: int, stop: int) -> Iterator[Sample]:
    """Samples of the labelled set: the classes in turn, so that each is equally common."""
    combinations = world.combinations
    names = class_names(world)
    for index in range(start, stop):
        label = index % len(combinations)
        scene = sample_scene(world, generator(seed, CLASSES, index), combination=combinations[label])
        image = encode(draw(scene, world.image_size))
        yield Sample(f"{index:08d}", image, {"en": [names[label]]}, label, {"scene": scene.facts()})


def make_pairs(world: World, seed: int, start: int, stop: int) -> Iterator[Pair]:
    """Pairs `start` to `stop`, the world's patterns in turn."""
    patterns = world.patterns
    for index in range(start, stop):
        yield sample_pair(world, generator(seed, PAIRS, index), patterns[index % len(patterns)])


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """JPEG bytes of (S, S, 3) uint8 RGB. Full colour resolution: half of it would smear the edges of small shapes."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def write_tar(path: Path, samples: Iterable[Sample]) -> int:
    """Writes a WebDataset tar and returns the number of samples in it.

    Each sample has KEY.jpg, KEY.txt (its first caption), KEY.json (captions by language, `label`, facts). The same
    samples make the same bytes: no time, owner or order of this machine gets into it.
    """
    count = 0
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for sample in samples:
            text = next(iter(sample.texts.values()))[0]
            record = {**sample.texts, "label": sample.label, **sample.facts}
            _add(tar, f"{sample.key}.{IMAGE_SUFFIX}", sample.image)
            _add(tar, f"{sample.key}.txt", text.encode())
            _add(tar, f"{sample.key}.json", json.dumps(record, ensure_ascii=False, sort_keys=True).encode())
            count += 1
    return count


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def _caption_facts(caption: Caption) -> dict[str, Any]:
    return {"kind": caption.kind, "language": caption.language, "told": dict(caption.told)}
