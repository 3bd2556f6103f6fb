"""Render samples of the synthetic world as bytes. Sample i of a seed does not depend on shard, process or order."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vfm.base import UserError
from vfm.data.synthetic.captions import Caption, sample_caption
from vfm.data.synthetic.drawing import draw
from vfm.data.synthetic.sampling import Stream, generator, sample_scene
from vfm.data.synthetic.scene import Pattern
from vfm.data.synthetic.world import World


@dataclass(frozen=True)
class RenderedSample:
    """A sample of a dataset.

    Attributes:
        key: Name of its files in a tar.
        image: JPEG bytes.
        texts: Captions by the language of their label.
        label: Class, as an index into `class_names`.
        facts: The scene and the content of the captions, as JSON values.
    """

    key: str
    image: bytes
    texts: dict[str, list[str]]
    label: int
    facts: dict[str, Any]

    def members(self) -> dict[str, bytes]:
        """Encode the files of a WebDataset tar.

        They are `jpg`, `txt` (the first caption) and `json` (captions, label, facts).
        """
        text = next(iter(self.texts.values()))[0]
        record = {**self.texts, "label": self.label, **self.facts}
        return {"jpg": self.image, "txt": text.encode(), "json": json.dumps(record, ensure_ascii=False).encode()}


def class_names(world: World) -> list[str]:
    """List the names of the zero-shot classes, such as "red star", in the order of `World.combinations`."""
    return [f"{colour} {shape}" for shape, colour in world.combinations]


def render_shard(
    world: World, seed: int, start: int, stop: int, *, drawn: Mapping[str, bytes] | None = None
) -> Iterator[RenderedSample]:
    """Yield samples `start` to `stop` of the pool of image-text pairs. Each depends only on the seed and its number.

    Args:
        world: Distribution of the samples.
        seed: Seed of the samples.
        start: Number of the first sample.
        stop: Number after the last sample.
        drawn: Images of this seed and world by key. They are not drawn again.

    Raises:
        UserError: If an image is missing in `drawn`, or its first image is not from this seed and world.
    """
    for index in range(start, stop):
        scene = sample_scene(world, generator(seed, Stream.POOL, index))
        key = f"{index:08d}"
        image = encode(draw(scene, world.image_size)) if drawn is None else drawn.get(key)
        is_checked = drawn is not None and index == start
        if image is None or (is_checked and image != encode(draw(scene, world.image_size))):
            got = "none" if image is None else "another image"
            raise UserError(f"images: expected sample {key} of the same world and seed, got {got}")
        rng = generator(seed, Stream.CAPTIONS, index)
        texts: dict[str, list[str]] = {}
        caption_facts: dict[str, list[dict[str, Any]]] = {}
        for language in world.languages:
            texts[language] = []
            caption_facts[language] = []
            for _ in range(world.captions_per_image):
                caption = sample_caption(world, scene, rng, language=language)
                texts[language].append(caption.text)
                caption_facts[language].append(_caption_facts(caption))
        facts = {"scene": scene.facts(), "captions": caption_facts}
        yield RenderedSample(key, image, texts, world.label(scene.shape, scene.colour), facts)


def render_labeled(world: World, seed: int, start: int, stop: int) -> Iterator[RenderedSample]:
    """Yield samples of the labelled dataset.

    The classes take turns, so that they are equally common.

    Args:
        world: Distribution of the samples.
        seed: Seed of the samples.
        start: Number of the first sample.
        stop: Number after the last sample.
    """
    combinations = world.combinations
    names = class_names(world)
    for index in range(start, stop):
        label = index % len(combinations)
        scene = sample_scene(world, generator(seed, Stream.CLASSES, index), combination=combinations[label])
        image = encode(draw(scene, world.image_size))
        yield RenderedSample(f"{index:08d}", image, {"en": [names[label]]}, label, {"scene": scene.facts()})


def render_values(pattern: Pattern, world: World, seed: int, start: int, stop: int) -> Iterator[RenderedSample]:
    """Yield samples of a labelled dataset whose classes are the values of an attribute, or the colours, in turn.

    Other shapes and colours are uniform. Scenes are drawn until one has the value (rejection sampling), so that the
    other attributes keep the distribution of a pool.

    Args:
        pattern: The attribute.
        world: Distribution of the samples.
        seed: Seed of the samples.
        start: Number of the first sample.
        stop: Number after the last sample.
    """
    values = world.colours if pattern == "colour" else world.values(pattern)
    for index in range(start, stop):
        label = index % len(values)
        rng = generator(seed, Stream.VALUES, index)
        scene = None
        while scene is None or scene.value(pattern) != values[label]:
            combination = world.combinations[int(rng.random() * len(world.combinations))]
            scene = sample_scene(world, rng, combination=combination)
        image = encode(draw(scene, world.image_size))
        yield RenderedSample(f"{index:08d}", image, {"en": [str(values[label])]}, label, {"scene": scene.facts()})


def encode(pixels: NDArray[np.uint8]) -> bytes:
    """Encode (S, S, 3) uint8 RGB as JPEG.

    Chroma subsampling is off, because it would blur the edges of small shapes.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _caption_facts(caption: Caption) -> dict[str, Any]:
    # The stored bytes of the synthetic datasets have this key, so it stays.
    return {"kind": caption.kind, "language": caption.language, "told": dict(caption.named)}
