"""Targets of a user's own data: tars, folders, tables, lists, labels, choices."""

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
from vfm.artifacts import Artifact, ChoiceDataset, ImageDataset, Pool, TaggedImages
from vfm.data import BadSample, load_choices, open_dataset, read_tags, write_tar

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


def read_tagged() -> dict[str, Any]:
    """Return the images and labels of the artifact `pool`."""
    found = TaggedImages.load("store/runs/r/artifacts/pool")
    dataset = ImageDataset.load(found.linked(found.data))
    source = open_dataset(dataset)
    tags = read_tags(found)
    items, bad = [], sum(dataset.bad_samples.values())
    for n in range(len(source)):
        try:
            items.append(digest(source[n].image, sorted(np.flatnonzero(tags[n]).tolist())))
        except BadSample:
            bad += 1
    return {"items": items, "bad": bad}


def read_items() -> dict[str, Any]:
    """Return the items of the artifact `pool`, a caption-choice benchmark."""
    found = ChoiceDataset.load("store/runs/r/artifacts/pool")
    items = [digest(item.images, item.statements, item.truth) for item in load_choices(found)]
    manifest = json.loads(Path("store/runs/r/artifacts/pool/manifest.json").read_text())
    return {"items": items, "bad": sum(manifest["bad_samples"].values())}


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


def class_folders() -> None:
    for label in NAMES:
        images(f"f/{label}", "")
    Path("f/classnames.txt").write_text("\n".join(NAMES))
    Path("f/zeroshot_classification_templates.txt").write_text("a photo of a {}.\na drawing of a {}.\n")


def image_list() -> None:
    Path("f/list.txt").write_text("".join(f"{name}\n" for name in images("f", "")))


def flags(n: int) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([n % 2, 1, n % 3 == 0], np.int64))
    return buffer.getvalue()


def clip_benchmark() -> None:
    images("x", "")
    rows = [(f"s{n:07d}", {"webp": encoded(n), "cls": str(n % 3).encode()}) for n in range(NUM)]
    Path("b/test").mkdir(parents=True)
    for shard in range(2):
        write_tar(Path(f"b/test/{shard}.tar"), rows[shard * 6 : shard * 6 + 6])
    Path("b/test/nshards.txt").write_text("2\n")
    Path("b/classnames.txt").write_text("\n".join(NAMES))
    Path("b/zeroshot_classification_templates.txt").write_text("a photo of a {c}.\n")


def mmvp() -> None:
    place = Path("m/MLLM_VLM Images/Color")
    place.mkdir(parents=True)
    rows = ["Question ID,Type,Statement"]
    for n in range(NUM):
        (place / f"{n + 1}.jpg").write_bytes(encoded(3 * n + 1))
        rows.append(f'{n + 1},Color,"Statement, number {n}"')
    Path("m/Questions.csv").write_text("\n".join(rows) + "\n")


def sugarcrepe() -> None:
    names = images("f", "")
    items = {str(n): {"filename": names[n], "caption": "a dog", "negative_caption": f"a cat {n}"} for n in range(NUM)}
    Path("f/add_obj.json").write_text(json.dumps(items))


def winoground() -> None:
    names = images("f", "")
    rows = [
        {"id": n, "image_0": names[n], "image_1": names[-1 - n], "caption_0": "a b", "caption_1": f"b {n}",
         "collapsed_tag": "Object"} for n in range(6)
    ]  # fmt: skip
    table("f/examples.jsonl", rows)


def winoground_parquet() -> None:
    rows = [
        {"id": n, "image_0": {"bytes": encoded(n)}, "image_1": {"bytes": encoded(n + 1)}, "caption_0": "a b",
         "caption_1": f"b {n}", "collapsed_tag": "Object"} for n in range(6)
    ]  # fmt: skip
    table("x.parquet", rows)


def own_choices() -> None:
    names = images("f", "")
    table(
        "f/c.jsonl", [{"images": [name], "statements": ["x", "y"], "truth": [0, -1], "pattern": "p"} for name in names]
    )


def wordnet() -> None:
    Path("w").mkdir()
    Path("w/index.noun").write_text(
        "".join(f"{word} n 1 0 1 1 0000{n}\n" for n, word in enumerate([*NAMES, "caption"]))
    )
    Path("w/noun.exc").write_text("foxen fox\n")
    Path("w/verb.exc").write_text("ran run\n")
    Path("w/cntlist.rev").write_text("".join(f"{word}%1:05:00:: 1 18\n" for word in NAMES))
    write_tar(
        Path("x.tar"), [(str(n), {"png": encoded(3 * n), "txt": f"a {NAMES[n % 3]}".encode()}) for n in range(NUM)]
    )
    recipe(
        {"kind": "data.pairs", "name": "pool", "path": "x.tar"},
        {"kind": "data.caption_labels", "name": "tags", "data": "pool", "wordnet": "w", "num_labels": 2},
    )


def caption(n: int) -> bytes:
    return CAPTIONS[n].encode()


def captions(n: int) -> bytes:
    return json.dumps({"en": [CAPTIONS[n]], "de": "Wort"}).encode()


def labels(n: int) -> bytes:
    return json.dumps({"has": [NAMES[n % 3]]}).encode()


def label(n: int) -> bytes:
    return str(n % 3).encode()


TEXTS = [{"caption": CAPTIONS[n], "uid": f"u{n}{n}{n}", "url": f"https://example.org/{n}.jpg"} for n in range(NUM)]
JSON = {"texts": {"en": "json.en"}}
LABELED = [NAMES[n % 3] for n in range(NUM)]

DATA = [
    indexed("tar of pairs", "data.pairs", lambda: tar(txt=caption), "x.tar"),
    indexed("tar with JSON", "data.pairs", lambda: tar(json=captions), "x.tar", **JSON),
    indexed("tar of images", "data.images", tar, "x.tar"),
    indexed("tar of labels", "data.labeled", lambda: tar(cls=label), "x.tar", class_names=NAMES),
    indexed("tar of flags (npy)", "data.tagged", lambda: tar(npy=flags), "x.tar", read=read_tagged,
            class_names=NAMES),
    indexed("tar of tags (JSON)", "data.tagged", lambda: tar(json=labels), "x.tar", read=read_tagged,
            labels_key="json.has", class_names=NAMES),
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
    indexed("class folders", "data.labeled", class_folders, "f", ["f/*/*.png", "f/*/*.jpg", "f/*.txt"]),
    indexed("csv of labels", "data.labeled", with_table("t.csv", column="label", values=LABELED), "f/t.csv",
            label_key="label"),
    indexed("CLIP_benchmark folder", "data.labeled", clip_benchmark, "b", ["b/*.txt", "b/test/*"]),
    indexed("MMVP-VLM", "data.choices", mmvp, "m", ["m/Questions.csv", "m/*/*/*.jpg"], read=read_items),
    indexed("SugarCrepe", "data.choices", sugarcrepe, "f/add_obj.json", read=read_items, image_root="f"),
    indexed("Winoground, JSON lines", "data.choices", winoground, "f/examples.jsonl", read=read_items, image_root="f"),
    indexed("Winoground, Parquet", "data.choices", winoground_parquet, "x.parquet", read=read_items),
    indexed("choices, JSON lines", "data.choices", own_choices, "f/c.jsonl", read=read_items),
    Target("WordNet's nouns", wordnet, ("w/*",)),
]  # fmt: skip
