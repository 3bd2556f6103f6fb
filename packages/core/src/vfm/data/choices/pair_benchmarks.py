"""Readers of benchmarks that are pairs of images and captions, as their authors publish them.

Winoground: `examples.jsonl` with a folder `images`, or the hub's parquet with the images inside.
ColorSwap: the hub's parquet, or JSON with the same columns.
NaturalBench-Retrieval: `metadata.json` with a folder `images`.
EqBen: the JSON of the 10 % subset, or of the full set, which names one image and one caption in each record.
What'sUp: `controlled_images_dataset.json` or `controlled_clevr_dataset.json` with their folders, and the COCO and GQA
subsets, whose records are [image id, right caption, wrong caption].

Source: Thrush et al. 2022, Winoground (arXiv:2204.03162); Burapacheep et al. 2024, ColorSwap (arXiv:2402.04492); Li et
al. 2024, NaturalBench (arXiv:2410.14669); Wang et al. 2023, EqBen (arXiv:2303.14465); Kamath et al. 2023, What's "up"
with vision-language models? (arXiv:2310.19785).
"""

from __future__ import annotations

import io
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vfm.data.choices.benchmarks import read_choice_image, required_texts
from vfm.data.choices.choices import Choice
from vfm.data.samples.images import decode_image
from vfm.data.samples.sample import BadSample
from vfm.data.samples.texts import OnBad
from vfm.data.tables.table import table_rows
from vfm.storage import files

# The columns of two images and their captions: Winoground's and NaturalBench's, ColorSwap's, EqBen's.
PAIR_COLUMNS = (
    ("image_0", "image_1", "caption_0", "caption_1"),
    ("image_1", "image_2", "caption_1", "caption_2"),
    ("image0", "image1", "caption0", "caption1"),
)
ORDER = ("left of", "right of", "on", "under", "in front of", "in-front of", "behind")  # of What'sUp's relations


def pair_columns(record: object) -> tuple[str, ...] | None:
    """Find the columns of a record's two images and two captions, if it has them."""
    if not isinstance(record, Mapping):
        return None
    return next((names for names in PAIR_COLUMNS if set(names[:2]) <= set(record)), None)


def read_pair_table(path: Path, image_root: str | None, on_bad: OnBad) -> Iterator[Choice]:
    """Yield the pairs of a parquet file or of JSON lines.

    Args:
        path: The file.
        image_root: Folder of images that are given by name.
        on_bad: Called with (reason, where) for pairs that cannot be used.
    """
    rows = table_rows(str(path)) if path.suffix == ".parquet" else _json_lines(path)
    return read_pairs(path, rows, image_root, on_bad)


def has_pair_lines(path: str) -> bool:
    """Check whether the first line of a file has the columns of a pair."""
    first = files.read_text(path).lstrip().split("\n", 1)[0]
    # The names of the two images identify the format.
    return any(f'"{names[0]}"' in first and f'"{names[1]}"' in first for names in PAIR_COLUMNS)


def read_pairs(path: Path, records: Iterable[Any], image_root: str | None, on_bad: OnBad) -> Iterator[Choice]:
    """Yield the pairs of records, in which the first caption belongs to the first image.

    The pattern is Winoground's `collapsed_tag`, or the sub-dataset of EqBen that an image's path begins with.

    Args:
        path: The file of the records.
        records: The records. A `BadSample` among them is reported.
        image_root: Folder of the images. The default is the folder `images` next to the file if there is one,
            otherwise the file's own folder.
        on_bad: Called with (reason, where) of each bad record.
    """
    root = image_root or _default_root(path)
    for number, record in enumerate(records):
        if isinstance(record, BadSample):
            on_bad(record.reason, record.where)
            continue
        key = str(record.get("id", record.get("index", number))) if isinstance(record, Mapping) else str(number)
        where = f"{path}: item {key}"
        names = pair_columns(record)
        try:
            if names is None or not all(record[name] for name in names[:2]):
                raise BadSample("missing_image", where)
            captions = required_texts(record, names[2:], where)
            images = [_pair_image(record[name], root, where) for name in names[:2]]
            yield Choice(key, _pattern(record, names), images, captions, [0, 1])
        except BadSample as bad:
            on_bad(bad.reason, bad.where)


def read_eqben(path: Path, records: list[Any], image_root: str | None, on_bad: OnBad) -> Iterator[Choice]:
    """Yield the pairs of EqBen's full set.

    Each record has one image and one caption of a pair. `private_info` names the sub-dataset, the pair, and the
    record's caption and image, such as `c0i1`.

    Args:
        path: The JSON file.
        records: Its content.
        image_root: Folder of the images.
        on_bad: Called with (reason, where) for pairs that cannot be used.
    """
    parts: defaultdict[tuple[str, str], dict[str, Any]] = defaultdict(dict)
    for number, record in enumerate(records):
        try:
            info = record["private_info"]
            caption = info["name"][:2]
            image = info["name"][2:]
            pair = parts[str(info["dataset"]), str(info["sample_cnt"])]
            pair[f"caption{caption[1]}"], pair[f"image{image[1]}"] = record["caption"], record["image"]
        except (KeyError, TypeError, IndexError):
            on_bad("unreadable_row", f"{path}: item {number}")
    pairs = ({"id": "/".join(key), "image0": None, "image1": None, **pair} for key, pair in parts.items())
    return read_pairs(path, pairs, image_root or str(path.parent), on_bad)


def read_whatsup(path: Path, records: list[Any], image_root: str | None, on_bad: OnBad) -> Iterator[Choice]:
    """Yield pairs of What'sUp's controlled images.

    The images of a pair show the same objects, left and right, or the other two relations. Each record has an image and
    the captions of all relations, the right one first. The pattern names the two relations.

    Args:
        path: The JSON file.
        records: Its content.
        image_root: Folder of the images.
        on_bad: Called with (reason, where) for pairs that cannot be used.
    """
    root = image_root or str(path.parent)
    groups: defaultdict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for number, record in enumerate(records):
        captions = record.get("caption_options") if isinstance(record, Mapping) else None
        if not isinstance(captions, list) or not captions or not all(isinstance(text, str) for text in captions):
            on_bad("missing_caption", f"{path}: item {number}")
        else:
            groups[tuple(sorted(captions))][captions[0]] = str(record.get("image_path"))
    for captions, image_of in groups.items():
        ordered = sorted(captions, key=lambda text: ORDER.index(_relation(text)))
        for pair in (ordered[:2], ordered[2:]):
            pattern = ", ".join(map(_relation, pair))
            where = f"{path}: {' / '.join(pair)}"
            try:
                if len(pair) != 2 or not all(caption in image_of for caption in pair):
                    raise BadSample("missing_image", where)
                # The paths begin with the folder of the authors' repository.
                images = [read_choice_image(root, image_of[caption].removeprefix("data/")) for caption in pair]
                yield Choice(f"{path.stem}/{pair[0]}", pattern, images, pair, [0, 1])
            except BadSample as bad:
                on_bad(bad.reason, bad.where)


def read_spatial(path: Path, records: list[Any], image_root: str | None, on_bad: OnBad) -> Iterator[Choice]:
    """Yield items of What'sUp's COCO or GQA subset.

    An item has an image of COCO or Visual Genome, and a right and a wrong caption.

    Args:
        path: The JSON file.
        records: Its content.
        image_root: Folder of the images.
        on_bad: Called with (reason, where) for items that cannot be used.
    """
    is_coco = path.stem.startswith("coco")
    root = image_root or str(path.parent / ("val2017" if is_coco else "vg_images"))
    for number, record in enumerate(records):
        where = f"{path}: item {number}"
        try:
            if not isinstance(record, list) or len(record) != 3 or not str(record[0]).isdigit():
                raise BadSample("unreadable_row", where)
            if not all(isinstance(text, str) and text for text in record[1:]):
                raise BadSample("missing_caption", where)
            name = f"{int(record[0]):012d}.jpg" if is_coco else f"{record[0]}.jpg"
            images = [read_choice_image(root, name)]
            yield Choice(f"{path.stem}/{number}", path.stem, images, record[1:], [0, -1])
        except BadSample as bad:
            on_bad(bad.reason, bad.where)


def _default_root(path: Path) -> str:
    folder = path.parent / "images"
    return str(folder if folder.is_dir() else path.parent)


def _pattern(record: Mapping[str, Any], names: tuple[str, ...]) -> str:
    image = record[names[0]]
    if names == PAIR_COLUMNS[2] and isinstance(image, str) and "/" in image:
        return image.split("/", 1)[0]
    return str(record.get("collapsed_tag") or "")


def _relation(caption: str) -> str:
    """Find the relation in a caption of What'sUp. A caption without one has the last relation."""
    return next((name for name in ORDER if f" {name} " in f" {caption} "), ORDER[-1])


def _pair_image(value: Any, root: str, where: str) -> bytes:
    """Read the image in a parquet cell ({bytes, path}), or by its name.

    Winoground writes names without `.png`.
    """
    if isinstance(value, str) and value.endswith(".npy"):
        return _frame(root, value)
    if isinstance(value, str):
        return read_choice_image(root, value if Path(value).suffix else f"{value}.png")
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise BadSample("missing_image", where)
    decode_image(data, where)
    return data


def _frame(root: str, name: str) -> bytes:
    """Read a frame of EqBen's videos, an array of blue, green and red, as PNG."""
    path = files.join_inside(root, name)
    if path is None:
        raise BadSample("unsafe_path", name)
    try:
        pixels = np.load(io.BytesIO(files.read_bytes(path)), allow_pickle=False)
        image = Image.fromarray(np.ascontiguousarray(pixels[:, :, ::-1], dtype=np.uint8))
    except OSError:
        raise BadSample("missing_image", path) from None
    except (ValueError, IndexError, TypeError, EOFError):
        raise BadSample("unreadable_image", path) from None
    data = io.BytesIO()
    image.save(data, "PNG")
    return data.getvalue()


def _json_lines(path: Path) -> Iterator[Mapping[str, Any] | BadSample]:
    for number, line in enumerate(files.read_text(str(path)).split("\n"), start=1):
        if line.strip():
            try:
                yield dict(json.loads(line))
            except (ValueError, TypeError, RecursionError):
                several = max(line.count(f'"{names[0]}"') for names in PAIR_COLUMNS)  # if a line break is damaged
                for _ in range(max(1, several)):
                    yield BadSample("broken_json", f"{path}: line {number}")
