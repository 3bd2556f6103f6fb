"""Recall and wrong pairs of the filters of copies, for each damage that a copy may have.

    python packages/curation/benchmarks/copies.py --pictures flickr8k-dev.tar flickr8k-train.tar

Damages 200 photographs in fifteen ways and compares each copy with its original, as `near_duplicates` and
`decontaminate` do; all pairs of 1,415 different photographs, a million, show which distance is safe. With `--clip DIR`
(a ClipCheckpoint) the same is measured for cosines of its embeddings, as `semantic_duplicates` and `decontaminate` with
`clip` compare them. Writes `copies.json` and `copies.md` into `results/`; a minute without a model. Without the
pictures it says so and ends.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import tarfile
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from vfm.data import IMAGE_EXTENSIONS
from vfm_curation.filters.hashes import NUM_VARIANTS, phash, variant_hashes

NUM_DAMAGED, NUM_DIFFERENT = 200, 1415  # 1,415 photographs make 1,000,405 pairs
DISTANCES = (4, 6, 8)
Hashes = NDArray[np.uint64]


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    """Return an image as JPEG of a quality gives it back."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def crop(image: Image.Image, share: float) -> Image.Image:
    """Cut a share of the width and height from each side."""
    across, down = round(share * image.width), round(share * image.height)
    return image.crop((across, down, image.width - across, image.height - down))


def watermark(image: Image.Image) -> Image.Image:
    """Write a word across the middle, half transparent."""
    mask = Image.new("L", image.size)
    place = (0.1 * image.width, 0.4 * image.height)
    ImageDraw.Draw(mask).text(place, "SAMPLE", fill=128, font_size=0.2 * image.width)
    return Image.composite(Image.new("RGB", image.size, "white"), image, mask)


def caption_bar(image: Image.Image, share: float) -> Image.Image:
    """Add a white bar with a text below."""
    canvas = Image.new("RGB", (image.width, round((1 + share) * image.height)), "white")
    canvas.paste(image)
    place = (0.05 * image.width, 1.01 * image.height)
    ImageDraw.Draw(canvas).text(place, "a photograph of something", fill="black", font_size=0.06 * image.height)
    return canvas


def damages(seed: int) -> dict[str, Callable[[Image.Image], Image.Image]]:
    """Return the damages by name; borders and bars have random sizes."""
    draw = random.Random(seed)
    return {
        "half the size": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.LANCZOS),
        "JPEG of quality 20": lambda image: jpeg(image, 20),
        "grey": lambda image: image.convert("L").convert("RGB"),
        "blur, 1.6 % of the width": lambda image: image.filter(ImageFilter.GaussianBlur(image.width / 64)),
        "contrast 1.5": lambda image: ImageEnhance.Contrast(image).enhance(1.5),
        "brightness 1.3": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
        "cut by 3 % a side": lambda image: crop(image, 0.03),
        "cut by 5 % a side": lambda image: crop(image, 0.05),
        "cut by 10 % a side": lambda image: crop(image, 0.10),
        "turned by 2 degrees": lambda image: image.rotate(2, Image.Resampling.BICUBIC),
        "border of 2 to 8 %": lambda image: ImageOps.expand(
            image, round(draw.uniform(0.02, 0.08) * image.width), draw.choice(["white", "black"])
        ),
        "watermark": watermark,
        "caption bar of 8 to 16 %": lambda image: caption_bar(image, draw.uniform(0.08, 0.16)),
        "mirrored": ImageOps.mirror,
        "turned by 90 degrees": lambda image: image.transpose(Image.Transpose.ROTATE_90),
    }


def pictures(tars: Iterable[Path]) -> Iterable[Image.Image]:
    """Yield the pictures in tars."""
    for path in tars:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name.rpartition(".")[2] in IMAGE_EXTENSIONS:
                    stream = archive.extractfile(member)
                    assert stream
                    yield Image.open(io.BytesIO(stream.read())).convert("RGB")


def hashes_of(images: Iterable[Image.Image]) -> Hashes:
    """Return the hash of each image and of its variants, (N, 1 + NUM_VARIANTS)."""
    return np.array([[phash(image), *variant_hashes(image)] for image in images], dtype=np.uint64)


def distance(one: Hashes, other: Hashes, *, variants: bool) -> NDArray[np.int64]:
    """Return the smallest distance of pairs of images; hashes broadcast over all but the last axis."""
    last = 1 + NUM_VARIANTS * variants
    forth = np.bitwise_count(one[..., :last] ^ other[..., :1]).min(axis=-1)
    back = np.bitwise_count(one[..., :1] ^ other[..., :last]).min(axis=-1)
    return np.minimum(forth, back).astype(np.int64)


def different_pairs(hashes: Hashes, *, variants: bool) -> NDArray[np.int64]:
    """Return the distances of all pairs."""
    rows = [distance(hashes[i], hashes[:i], variants=variants) for i in range(1, len(hashes))]
    return np.concatenate(rows)


def measure_hashes(images: Sequence[Image.Image], num_damaged: int) -> dict[str, object]:
    """Return the recall for each damage and distance, and the number of wrong pairs, with variants and without."""
    hashes, found = hashes_of(images), {}
    copies = {name: hashes_of(map(damage, images[:num_damaged])) for name, damage in damages(0).items()}
    for variants in (True, False):
        far = different_pairs(hashes, variants=variants)
        near = {name: distance(hashes[:num_damaged], one, variants=variants) for name, one in copies.items()}
        found["with variants" if variants else "without"] = {
            "pairs": len(far),
            "nearest_pair": int(far.min()),
            "wrong": {limit: int((far <= limit).sum()) for limit in DISTANCES},
            "recall": {
                name: {limit: float((one <= limit).mean()) for limit in DISTANCES} for name, one in near.items()
            },
        }
    return found


def measure_clip(directory: Path, images: Sequence[Image.Image], num_damaged: int) -> dict[str, object]:
    """Return the recall for each damage at the smallest cosine without a wrong pair."""
    from vfm.models import load_clip
    from vfm.plugin import ClipCheckpoint

    model = load_clip(ClipCheckpoint.load(directory))
    embed = lambda some: np.asarray(model.encode_images(list(some), 64), dtype=np.float32)  # noqa: E731
    vectors = embed(images)
    cosines = vectors @ vectors.T
    largest = float(cosines[np.tril_indices(len(images), -1)].max())
    limit = float(np.nextafter(np.float32(largest), np.float32(2)))
    recall = {}
    for name, damage in damages(0).items():
        near = (vectors[:num_damaged] * embed(map(damage, images[:num_damaged]))).sum(axis=1)
        recall[name] = float((near >= limit).mean())
    return {"min_cosine": limit, "pairs": len(images) * (len(images) - 1) // 2, "recall": recall}


def markdown(found: dict[str, object], num_damaged: int) -> str:
    """Return the tables."""
    hashed, lines = found["hashes"], []
    assert isinstance(hashed, dict)
    head = [f"{limit} bits, {kind}" for kind in hashed for limit in DISTANCES]
    lines += [f"| recall of {num_damaged} copies, % | {' | '.join(head)} |", "|---|" + "---:|" * len(head)]
    for name in next(iter(hashed.values()))["recall"]:
        values = [100 * one["recall"][name][limit] for one in hashed.values() for limit in DISTANCES]
        lines.append(f"| {name} | {' | '.join(f'{value:.1f}' for value in values)} |")
    means = [
        100 * float(np.mean([row[limit] for row in one["recall"].values()]))
        for one in hashed.values()
        for limit in DISTANCES
    ]
    lines.append(f"| **all** | {' | '.join(f'**{value:.1f}**' for value in means)} |")
    wrong = [str(one["wrong"][limit]) for one in hashed.values() for limit in DISTANCES]
    pairs = next(iter(hashed.values()))["pairs"]
    lines += [f"| wrong pairs of {pairs:,} | {' | '.join(wrong)} |", ""]
    if clip := found.get("clip"):
        assert isinstance(clip, dict)
        mean = float(np.mean(list(clip["recall"].values())))
        lines += [f"By cosine of at least {clip['min_cosine']:.4f}, the smallest without a wrong pair:"
                  f" {100 * mean:.1f} % of all.", "", "| damage | recall, % |", "|---|---:|",
                  *(f"| {name} | {100 * value:.1f} |" for name, value in clip["recall"].items()), ""]  # fmt: skip
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, nargs="+", required=True, help="tars of photographs, all different")
    parser.add_argument("--clip", type=Path, help="folder of a ClipCheckpoint, to measure its embeddings too")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder for the results")
    parser.add_argument("--quick", action="store_true", help="few pictures, to check that it runs")
    options = parser.parse_args(arguments)
    if missing := [path for path in options.pictures if not path.is_file()]:
        print(f"nothing measured: {missing[0]} does not exist")
        return
    num_damaged, num_different = (8, 20) if options.quick else (NUM_DAMAGED, NUM_DIFFERENT)
    images = list(islice(pictures(options.pictures), num_different))
    found: dict[str, object] = {"hashes": measure_hashes(images, num_damaged)}
    if options.clip:
        found["clip"] = measure_clip(options.clip, images, num_damaged)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "copies.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    table = markdown(found, num_damaged)
    (options.out / "copies.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
