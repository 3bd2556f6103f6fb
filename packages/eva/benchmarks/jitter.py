"""Compare large-scale jitter of JPEG images with boxes and masks with torchvision's classes: CPU time per image.

Images and ellipses are drawn, or come from a folder of `data.annotated`: `--data coco128`.
"""

from __future__ import annotations

import argparse
import io
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench import report
from PIL import Image
from torchvision import tv_tensors
from torchvision.transforms import v2

from vfm.data import decode_image, to_tensor
from vfm.data.annotated import AnnotatedSource, ObjectArrays, decode_mask, encode_mask
from vfm.data.annotated.stages import Annotated
from vfm.plugin import AnnotatedImages, Context
from vfm_eva.dense.augment import PAD, draw_placement, place_image, place_objects

NUM_OBJECTS = 7  # COCO has 7.3 per image
SCALE = (0.1, 2.0)


def sample(seed: int, width: int = 640, height: int = 480) -> tuple[bytes, ObjectArrays]:
    """Draw a smooth random JPEG image of COCO's size, with ellipses of all sizes as objects."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8))
    file = io.BytesIO()
    coarse.resize((width, height), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    y, x = np.mgrid[:height, :width]
    places = rng.random((NUM_OBJECTS, 2)) * (width, height)
    radii = np.exp(rng.uniform(np.log(8), np.log(160), (NUM_OBJECTS, 2)))
    masks = [((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 <= 1 for (cx, cy), (rx, ry) in zip(places, radii, strict=True)]
    boxes = np.concatenate([places - radii, places + radii], axis=1).clip(0, (width, height, width, height))
    none = np.zeros(NUM_OBJECTS, dtype=bool)
    labels, areas = np.arange(NUM_OBJECTS), np.array([mask.sum() for mask in masks], dtype=float)
    counts = [encode_mask(mask) for mask in masks]
    return file.getvalue(), ObjectArrays(np.zeros_like(labels), labels, boxes, counts, areas, none, none)


def real_samples(folder: Path) -> list[tuple[bytes, ObjectArrays]]:
    """Read the images with objects of a dataset."""
    with tempfile.TemporaryDirectory() as name:
        Annotated(name="data", path=str(folder)).run(Context("data", Path(name), Path(name), {}))
        source = AnnotatedSource(AnnotatedImages.load(name))
        read = [(source.source[number].image, source.objects(number)) for number in range(len(source))]
    return [(data, objects) for data, objects in read if len(objects)]


def has_masks(objects: ObjectArrays) -> bool:
    return None not in objects.counts


def ours(data: bytes, objects: ObjectArrays, side: int, seed: int) -> Any:
    image = decode_image(data, "")
    placement = draw_placement(image.size, side, SCALE, 0.5, np.random.default_rng(seed))
    return place_image(image, placement), place_objects(objects, placement, with_masks=has_masks(objects))


def torchvisions(side: int, *, tensors: bool) -> Any:
    """Build the same augmentation from torchvision's classes, on tensors or on Pillow images."""
    fill = {Image.Image: PAD, tv_tensors.Image: PAD, tv_tensors.Mask: 0}
    transform = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.ScaleJitter((side, side), SCALE),
            v2.RandomCrop((side, side), pad_if_needed=True, fill=fill),
            v2.SanitizeBoundingBoxes(),
        ]
    )

    def apply(data: bytes, objects: ObjectArrays, _side: int, seed: int) -> Any:
        torch.manual_seed(seed)
        image = decode_image(data, "")
        height, width = image.height, image.width
        boxes = tv_tensors.BoundingBoxes(objects.boxes, format="XYXY", canvas_size=(height, width))  # type: ignore[call-arg]
        inputs: dict[str, Any] = {
            "image": tv_tensors.Image(to_tensor(image)) if tensors else image,
            "boxes": boxes,
            "labels": torch.from_numpy(objects.labels),
        }
        if has_masks(objects):
            masks = np.stack([decode_mask(one, height, width) for one in objects.counts if one is not None])
            inputs["masks"] = tv_tensors.Mask(torch.from_numpy(masks))
        found = transform(inputs)
        return found["image"] if tensors else to_tensor(found["image"])

    return apply


def measure(side: int, samples: list[tuple[bytes, ObjectArrays]], rounds: int) -> dict[str, float]:
    """Measure the median CPU milliseconds per image of each contestant, run alternately."""
    pictures = len(samples)
    contestants = {
        "vfm": ours,
        "torchvision, tensors": torchvisions(side, tensors=True),
        "torchvision, Pillow": torchvisions(side, tensors=False),
    }
    spent: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds):
        for name, run in contestants.items():
            start = time.process_time()
            for number, (data, objects) in enumerate(samples):
                run(data, objects, side, turn * pictures + number)
            spent[name].append(1000 * (time.process_time() - start) / pictures)
    return {name: statistics.median(times) for name, times in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one size, few images; the numbers mean nothing")
    parser.add_argument("--data", type=Path, help="folder of annotated images; default: drawn images")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    sides = [64] if options.quick else [640, 1024]
    pictures, rounds = (2, 1) if options.quick else (24, 5)
    if options.data:
        samples = real_samples(options.data)
        objects = np.mean([len(objects) for _, objects in samples])
        about = f"{len(samples)} images of {options.data.name}, {objects:.1f} objects each"
    else:
        samples = [sample(seed) for seed in range(pictures)]
        about = f"640 x 480 JPEG, {NUM_OBJECTS} masks each"
    found = {str(side): measure(side, samples, rounds) for side in sides}
    lines = [
        f"{platform.machine()} CPU, one thread, torch {torch.__version__}; {about}",
        "",
        "| crop | contestant | ms an image | vfm is faster by |",
        "|---|---|---|---|",
    ]
    for side, times in found.items():
        lines += [f"| {side} | {name} | {ms:.1f} | {ms / times['vfm']:.2f} |" for name, ms in times.items()]
    report(found, "\n".join(lines), options.out)


if __name__ == "__main__":
    main()
