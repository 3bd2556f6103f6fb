"""Annotated images, questions and videos in the layouts of COCO, VOC, Ultralytics, FiftyOne, LLaVA and Kinetics."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from peer_files import NAMES, Writer, caption, class_folders, images, write
from video_files import encode, grey_frames


def size_of(file: Path) -> tuple[int, int]:
    with Image.open(file) as image:
        return image.size


def coco_record(files: list[Path], *, captions: bool = False) -> dict[str, Any]:
    """Build COCO's record: an object, or two captions, for each image."""
    entries, annotations = [], []
    for number, file in enumerate(files):
        width, height = size_of(file)
        entries.append({"id": number, "file_name": file.name, "width": width, "height": height})
        if captions:
            annotations += [{"id": 2 * number + k, "image_id": number, "caption": caption(number)} for k in (0, 1)]
        else:
            box = {"bbox": [4, 4, 20, 16], "area": 320, "iscrowd": 0, "category_id": number % 4 + 1}
            annotations.append({"id": number, "image_id": number, **box})
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)]
    return {"info": {}, "images": entries, "annotations": annotations, "categories": categories}


def coco(folder: Path) -> Path:
    """Write COCO's own folders: train2017, and annotations/instances_train2017.json."""
    files = images(folder / "coco/train2017")
    write(folder / "coco/annotations/instances_train2017.json", json.dumps(coco_record(files)))
    return folder / "coco"


def coco_json(folder: Path) -> Path:
    """Write COCO's folders, and name the json."""
    return coco(folder) / "annotations/instances_train2017.json"


def coco_captions(folder: Path) -> Path:
    """Write COCO's captions next to the folder of their images."""
    files = images(folder / "coco/train2017")
    record = coco_record(files, captions=True)
    return write(folder / "coco/annotations/captions_train2017.json", json.dumps(record))


def fiftyone_coco(folder: Path) -> Path:
    """Write FiftyOne's export of the type COCODetectionDataset: `data` and `labels.json`."""
    write(folder / "export/labels.json", json.dumps(coco_record(images(folder / "export/data"))))
    return folder / "export"


def fiftyone_classes(folder: Path) -> Path:
    """Write FiftyOne's export of the type FiftyOneImageClassificationDataset: `data` and `labels.json`."""
    files = images(folder / "export/data")
    labels = {file.stem: number % 4 for number, file in enumerate(files)}
    write(folder / "export/labels.json", json.dumps({"classes": NAMES, "labels": labels}))
    return folder / "export"


def yolo_folder(folder: Path, *, splits: tuple[str, ...] = ("train", "val")) -> Path:
    """Write Ultralytics' folders: data.yaml, and `images` and `labels` with a folder for each split."""
    root = folder / "shapes"
    for split in splits:
        for number, file in enumerate(images(root / "images" / split)):
            write(root / "labels" / split / f"{file.stem}.txt", f"{number % 4} 0.5 0.5 0.4 0.3\n")
    names = "\n".join(f"  {number}: {name}" for number, name in enumerate(NAMES))
    lines = [f"path: {root}", *(f"{split}: images/{split}" for split in splits), "names:", names]
    write(root / "data.yaml", "\n".join(lines) + "\n")
    return root


def roboflow_folder(folder: Path) -> Path:
    """Write Roboflow's export for YOLO: a folder for each split, with `images` and `labels` in it."""
    root = folder / "roboflow"
    for split in ("train", "valid"):
        for number, file in enumerate(images(root / split / "images")):
            write(root / split / "labels" / f"{file.stem}.txt", f"{number % 4} 0.5 0.5 0.4 0.3\n")
    write(root / "data.yaml", f"train: ../train/images\nval: ../valid/images\nnc: 4\nnames: {json.dumps(NAMES)}\n")
    return root / "data.yaml"


def voc(folder: Path) -> Path:
    """Write VOC's folders."""
    root, stems = folder / "VOC2007", []
    for number, file in enumerate(images(root / "JPEGImages")):
        width, height = size_of(file)
        box = "<bndbox><xmin>4</xmin><ymin>4</ymin><xmax>24</xmax><ymax>20</ymax></bndbox>"
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        item = f"<object><name>{NAMES[number % 4]}</name><difficult>0</difficult>{box}</object>"
        text = f"<annotation><filename>{file.name}</filename>{size}{item}</annotation>"
        write(root / "Annotations" / f"{file.stem}.xml", text)
        stems.append(file.stem)
    write(root / "ImageSets/Main/train.txt", "\n".join(stems))
    return root


def llava_json(folder: Path) -> Path:
    """Write LLaVA's json: conversations about images in a folder next to it."""
    records = []
    for number, file in enumerate(images(folder / "images")):
        turns = [
            {"from": "human", "value": "<image>\nWhat colour is it?"},
            {"from": "gpt", "value": f"It is {NAMES[number % 4]}."},
            {"from": "human", "value": "Which number?"},
            {"from": "gpt", "value": f"Number {number}."},
        ]
        records.append({"id": str(number), "image": f"images/{file.name}", "conversations": turns})
    records.append({"id": "text", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hi"}]})
    return write(folder / "llava_instruct.json", json.dumps(records))


def videos(folder: Path) -> Path:
    """Write short videos in a folder for each class."""
    for number in range(8):
        write(folder / "videos" / NAMES[number % 2] / f"{number}.mp4", encode(grey_frames(8)))
    return folder / "videos"


ANNOTATIONS: dict[str, Writer] = {
    "COCO: folders": coco,
    "COCO: instances json": coco_json,
    "COCO: captions json": coco_captions,
    "FiftyOne: COCODetectionDataset": fiftyone_coco,
    "FiftyOne: FiftyOneImageClassificationDataset": fiftyone_classes,
    "FiftyOne: ImageClassificationDirectoryTree": lambda folder: class_folders(folder),
    "Ultralytics: data.yaml": lambda folder: yolo_folder(folder) / "data.yaml",
    "Ultralytics: folder": yolo_folder,
    "Ultralytics: classification": lambda folder: class_folders(folder, "train", "val", "test"),
    "Roboflow: data.yaml": roboflow_folder,
    "VOC": voc,
    "LLaVA: json": llava_json,
    "Kinetics: folders of videos": videos,
}
