"""Targets of labels: classes, tags, boxes, choices."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.data import NAMES, NUM, encoded, images, indexed, table, tar, with_table
from fuzz.targets import Target, digest, recipe
from vfm.data import BadSample, load_choices, open_dataset, read_tags, write_tar
from vfm.data.annotated import AnnotatedSource
from vfm.interfaces import AnnotatedImages, ChoiceDataset, ImageDataset, TaggedImages

LABELED = [NAMES[n % 3] for n in range(NUM)]


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


def read_objects() -> dict[str, Any]:
    """Read the images of the artifact `pool` with their boxes, and count its annotations and what its file lists."""
    source = AnnotatedSource(AnnotatedImages.load("store/runs/r/artifacts/pool"))
    items, bad = [], sum(source.dataset.bad_samples.values())
    for n in range(len(source)):
        try:
            pixels = source.image(n).tobytes()
        except BadSample:
            bad += 1
            continue
        objects = source.objects(n)
        items.append(digest(pixels, objects.labels.tolist(), objects.boxes.tolist()))
    found = source.dataset
    dropped = sum(found.bad_annotations.values())
    records = {"images": len(items) + bad, "annotations": found.num_objects + dropped}
    in_file = listed(Path("f/boxes.json"))
    return {"items": items, "bad": bad, "dropped": dropped, "records": records, "listed": in_file}


def listed(file: Path) -> dict[str, int]:
    """Count the images and annotations in COCO's file with nothing of vfm. Empty if it cannot be parsed."""
    try:
        content = json.loads(file.read_bytes())
    except ValueError:
        return {}
    return {key: len(content[key]) for key in ("images", "annotations")}


def read_items() -> dict[str, Any]:
    """Return the items of the artifact `pool`, a caption-choice benchmark."""
    found = ChoiceDataset.load("store/runs/r/artifacts/pool")
    items = [digest(item.images, item.statements, item.truth) for item in load_choices(found)]
    manifest = json.loads(Path("store/runs/r/artifacts/pool/manifest.json").read_text())
    return {"items": items, "bad": sum(manifest["bad_samples"].values())}


def coco_objects() -> None:
    names = images("f", "")
    record = {
        "images": [{"id": 100 * n, "file_name": name, "width": 24, "height": 16} for n, name in enumerate(names)],
        "categories": [{"id": n + 1, "name": name} for n, name in enumerate(NAMES)],
        "annotations": [
            {"id": n, "image_id": 100 * n, "category_id": n % 3 + 1, "bbox": [n, 2, 6, 3], "area": 18, "iscrowd": 0}
            for n in range(NUM)
        ],
    }
    Path("f/boxes.json").write_text(json.dumps(record))


def class_folders() -> None:
    for label in NAMES:
        images(f"f/{label}", "")
    Path("f/classnames.txt").write_text("\n".join(NAMES))
    Path("f/zeroshot_classification_templates.txt").write_text("a photo of a {}.\na drawing of a {}.\n")


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


def labels(n: int) -> bytes:
    return json.dumps({"has": [NAMES[n % 3]]}).encode()


def label(n: int) -> bytes:
    return str(n % 3).encode()


LABELS = [
    indexed("tar of labels", "data.labeled", lambda: tar(cls=label), "x.tar", class_names=NAMES),
    indexed("tar of flags (npy)", "data.tagged", lambda: tar(npy=flags), "x.tar", read=read_tagged,
            class_names=NAMES),
    indexed("tar of tags (JSON)", "data.tagged", lambda: tar(json=labels), "x.tar", read=read_tagged,
            labels_key="json.has", class_names=NAMES),
    indexed("COCO's boxes", "data.annotated", coco_objects, "f", ["f/boxes.json"], read=read_objects,
            annotations="f/boxes.json"),
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
