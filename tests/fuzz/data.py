"""Targets of a user's own data: tars, folders, tables, lists, captions."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from fuzz.targets import RUN, Target, digest, recipe
from vfm.data import BadSample, open_dataset, write_tar
from vfm.interfaces import Artifact, ImageDataset, Pool

NUM = 12
KINDS = ("png", "jpg", "webp")
NAMES = ["cat", "dog", "fox"]
CAPTIONS = [f'caption {n}, "quoted" and more' if n % 3 else f"Bild {n}: schöne Füchse" for n in range(NUM)]


def encoded(n: int) -> bytes:
    """Return an image that differs from every other number's, in each of the formats in turn."""
    pixels = np.random.default_rng(n).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, {"jpg": "JPEG"}.get(kind := KINDS[n % 3], kind.upper()))
    return buffer.getvalue()


def images(folder: str, caption: str = "txt") -> list[str]:
    """Write images into a folder, with a text file each unless `caption` is empty; return their names."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    names = [f"{n}{n}{n}.{KINDS[n % 3]}" for n in range(NUM)]  # no flipped bit makes a name another one
    for n, name in enumerate(names):
        (Path(folder) / name).write_bytes(encoded(n))
        if caption:
            (Path(folder) / name).with_suffix(f".{caption}").write_text(CAPTIONS[n], encoding="utf-8")
    return names


def tar(**members: Callable[[int], bytes]) -> None:
    """Write a tar of images with further members."""
    rows = [(f"{n:06d}", {KINDS[n % 3]: encoded(n), **{k: make(n) for k, make in members.items()}}) for n in range(NUM)]
    write_tar(Path("x.tar"), rows)


def table(name: str, rows: list[dict[str, Any]]) -> None:
    """Write a table in the format of its name."""
    buffer = io.StringIO()
    if ".jsonl" in name:
        buffer.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    elif name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(rows), name, row_group_size=4)
        return
    else:
        writer = csv.DictWriter(buffer, list(rows[0]), delimiter="\t" if ".tsv" in name else ",")
        writer.writeheader()
        writer.writerows(rows)
    data = buffer.getvalue().encode()
    Path(name).write_bytes(gzip.compress(data, mtime=0) if name.endswith(".gz") else data)


def read_samples() -> dict[str, Any]:
    """Return every sample of the artifact `pool` as it is read, and the number of those counted as bad."""
    found = Artifact.load("store/runs/r/artifacts/pool")
    assert isinstance(found, ImageDataset)
    source, items, bad = open_dataset(found), [], sum(found.bad_samples.values())
    names = getattr(found, "class_names", None)
    for n in range(len(source)):
        try:
            sample = source[n]
        except BadSample:
            bad += 1
            continue
        items.append(
            digest(sample.image, sample.texts, names[sample.label] if names and sample.label is not None else "")
        )
    return {"items": items, "bad": bad}


def read_texts() -> dict[str, Any]:
    """Return every caption of the artifact `pool`, a table without images."""
    found = Pool.load("store/runs/r/artifacts/pool")
    source, lost = open_dataset(found), []
    shards = [source.texts_of_shard(n, lambda *bad: lost.append(bad)) for n in range(len(source.shard_sizes))]
    items = [digest(row["text"], row["language"]) for shard in shards for row in shard.to_pylist()]
    return {"items": items, "bad": sum(found.bad_samples.values()) + len(lost)}


def indexed(
    name: str, kind: str, make: Callable[[], object], path: str, files: Iterable[str] = (),
    read: Callable[[], dict[str, Any]] = read_samples, **fields: Any,
) -> Target:  # fmt: skip
    """Return the target of a stage that indexes `path`; all samples may be bad."""

    def world() -> None:
        make()
        recipe({"kind": kind, "name": "pool", "path": path, "max_bad_fraction": 1.0, **fields})

    return Target(name, world, tuple(files) or (path,), (RUN,), read)


def with_table(name: str, *, column: str = "caption", values: list[Any] = CAPTIONS) -> Callable[[], None]:
    """Return a function that writes images and a table of their paths."""

    def make() -> None:
        rows = [{"image": image, column: value} for image, value in zip(images("f", ""), values, strict=True)]
        table(f"f/{name}", rows)

    return make


def parquet_of_images() -> None:
    table("x.parquet", [{"image": encoded(n), "caption": CAPTIONS[n]} for n in range(NUM)])


def coco_captions() -> None:
    names = images("f", "")
    record = {
        "images": [{"id": 100 * n, "file_name": name} for n, name in enumerate(names)],
        "annotations": [{"id": n, "image_id": 100 * n, "caption": CAPTIONS[n]} for n in range(NUM)],
    }
    Path("f/captions_x.json").write_text(json.dumps(record, ensure_ascii=False))


def saved_dataset() -> None:
    """Write what `save_to_disk` of Hugging Face's datasets writes."""
    Path("h").mkdir()
    rows = [{"image": {"bytes": encoded(n), "path": None}, "caption": CAPTIONS[n]} for n in range(NUM)]
    names = [f"data-{shard:05d}-of-00002.arrow" for shard in range(2)]
    for shard, name in enumerate(names):
        part = pa.Table.from_pylist(rows[shard * 6 : shard * 6 + 6])
        with pa.ipc.new_stream(f"h/{name}", part.schema) as writer:
            writer.write_table(part, max_chunksize=2)
    Path("h/state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names], "_split": None}))
    Path("h/dataset_info.json").write_text(json.dumps({"features": {"image": {"_type": "Image"}}}))


def caption_lines() -> None:
    Path("t.txt").write_text("".join(f"{one}\n" for one in CAPTIONS), encoding="utf-8")


def image_list() -> None:
    Path("f/list.txt").write_text("".join(f"{name}\n" for name in images("f", "")))


def caption(n: int) -> bytes:
    return CAPTIONS[n].encode()


def captions(n: int) -> bytes:
    return json.dumps({"en": [CAPTIONS[n]], "de": "Wort"}).encode()


TEXTS = [{"caption": CAPTIONS[n], "uid": f"u{n}{n}{n}", "url": f"https://example.org/{n}.jpg"} for n in range(NUM)]
JSON = {"texts": {"en": "json.en"}}

DATA = [
    indexed("tar of pairs", "data.pairs", lambda: tar(txt=caption), "x.tar"),
    indexed("tar with JSON", "data.pairs", lambda: tar(json=captions), "x.tar", **JSON),
    indexed("tar of images", "data.images", tar, "x.tar"),
    indexed("folder of pairs", "data.pairs", lambda: images("f"), "f", ["f/*.png", "f/*.jpg", "f/*.webp", "f/*.txt"]),
    indexed("folder of images", "data.images", lambda: images("f", ""), "f", ["f/*.png", "f/*.jpg", "f/*.webp"]),
    *(indexed(kind, "data.pairs", with_table(f"t.{kind}"), f"f/t.{kind}") for kind in ("csv", "tsv", "jsonl")),
    indexed("csv.gz", "data.pairs", with_table("t.csv.gz"), "f/t.csv.gz"),
    indexed("Parquet of paths", "data.pairs", with_table("t.parquet"), "f/t.parquet"),
    indexed("Parquet of images", "data.pairs", parquet_of_images, "x.parquet"),
    indexed("list of images", "data.images", image_list, "f/list.txt"),
    *(
        indexed(f"captions alone, {kind}", "data.pairs", lambda kind=kind: table(f"t.{kind}", TEXTS), f"t.{kind}",
                read=read_texts, images=False)
        for kind in ("csv", "jsonl", "csv.gz", "parquet")
    ),
    indexed("COCO's captions", "data.pairs", coco_captions, "f/captions_x.json"),
    indexed("saved dataset (Arrow)", "data.pairs", saved_dataset, "h", ["h/*"]),
    indexed("captions, one a line", "data.pairs", caption_lines, "t.txt", read=read_texts, images=False),
]  # fmt: skip
