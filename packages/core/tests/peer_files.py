"""Data as the users of other libraries have them, written by these libraries where they are installed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import webdataset
from PIL import Image

COLOURS = {"red": (220, 30, 30), "green": (30, 220, 30), "blue": (30, 30, 220), "grey": (120, 120, 120)}
NAMES = list(COLOURS)
NUM_SAMPLES = 24
Writer = Callable[[Path], Path]


def jpeg(number: int, side: int = 48) -> bytes:
    """Draw an image of a colour, each a little different."""
    colour = tuple(min(255, value + number % 20) for value in COLOURS[NAMES[number % 4]])
    buffer = io.BytesIO()
    Image.new("RGB", (side + number, side), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def caption(number: int) -> str:
    return f"a photo of something {NAMES[number % 4]}, number {number}"


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def images(folder: Path, pattern: str = "{:05d}.jpg", count: int = NUM_SAMPLES) -> list[Path]:
    """Write images into a folder."""
    return [write(folder / pattern.format(number), jpeg(number)) for number in range(count)]


def tar(path: Path, rows: list[dict[str, bytes | str]]) -> Path:
    """Write a tar by webdataset's own writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as sink:
        for number, row in enumerate(rows):
            sink.write({"__key__": f"{number:06d}", **row})
    return path


def table(path: Path, header: list[str], rows: list[list[object]], separator: str = ",") -> Path:
    """Write a csv file."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream, delimiter=separator)
        writer.writerows([header, *rows])
    return path


def img2dataset_output(folder: Path, output_format: str) -> Path:
    """Write the output of img2dataset: shards, a table next to each, and its statistics."""
    out = folder / "laion"
    sources = images(folder / "web")
    listed = table(folder / "urls.csv", ["url", "caption"], [[s.as_uri(), caption(n)] for n, s in enumerate(sources)])
    if find_spec("img2dataset"):
        from img2dataset import download

        download(
            url_list=str(listed),
            input_format="csv",
            url_col="url",
            caption_col="caption",
            output_folder=str(out),
            output_format=output_format,
            image_size=64,
            processes_count=1,
            thread_count=2,
            number_sample_per_shard=16,
        )
        return out
    facts = [
        {"caption": caption(n), "url": s.as_uri(), "key": f"{n:09d}", "status": "success"}
        for n, s in enumerate(sources)
    ]
    table_of = pa.Table.from_pylist(facts)
    out.mkdir()
    if output_format == "parquet":
        table_of = table_of.append_column("jpg", pa.array([jpeg(n) for n in range(NUM_SAMPLES)]))
    pq.write_table(table_of, out / "00000.parquet")
    write(out / "00000_stats.json", json.dumps({"count": NUM_SAMPLES, "successes": NUM_SAMPLES}))
    if output_format == "webdataset":
        rows = [{"jpg": jpeg(n), "txt": caption(n), "json": json.dumps(f)} for n, f in enumerate(facts)]
        tar(out / "00000.tar", rows)
    if output_format == "files":
        for number, fact in enumerate(facts):
            stem = out / "00000" / fact["key"]
            write(stem.with_suffix(".jpg"), jpeg(number))
            write(stem.with_suffix(".txt"), caption(number))
            write(stem.with_suffix(".json"), json.dumps(fact))
    return out


def open_clip_csv(folder: Path, *, absolute: bool, separator: str) -> Path:
    """Write open_clip's table, with its default names of the columns."""
    files = images(folder / "photos")
    names = [file if absolute else f"photos/{file.name}" for file in files]
    rows = [[name, caption(number)] for number, name in enumerate(names)]
    return table(folder / "train.csv", ["filepath", "title"], rows, separator)


def described_csv(folder: Path) -> Path:
    """Write a table with columns that nobody agreed on, and the images in a folder next to it."""
    files = images(folder / "images")
    rows = [[n, file.name, caption(n)] for n, file in enumerate(files)]
    return table(folder / "products.csv", ["id", "photo", "description"], rows)


def kaggle_csv(folder: Path) -> Path:
    """Write a competition's table: names of images without their extension, and a number for each class."""
    files = images(folder / "train_images")
    return table(folder / "train.csv", ["image_id", "label"], [[f.stem, n % 4] for n, f in enumerate(files)])


def class_folders(folder: Path, *splits: str) -> Path:
    """Write ImageNet's folders: a folder for each split, and in it for each class."""
    for split in splits or ("",):
        for number in range(NUM_SAMPLES):
            write(folder / "imagenet" / split / f"n0{number % 4}" / f"{number}.JPEG", jpeg(number))
    return folder / "imagenet"


def hub_parquet(folder: Path, *, kind: str) -> Path:
    """Write Parquet as `datasets` does: captions, a ClassLabel, or integer labels with a column of names."""
    path = folder / "data" / "train-00000-of-00001.parquet"
    path.parent.mkdir(parents=True)
    rows = [{"image": {"bytes": jpeg(n), "path": None}} for n in range(NUM_SAMPLES)]
    for number, row in enumerate(rows):
        if kind == "captions":
            row["text"] = caption(number)  # type: ignore[assignment]
        else:
            row["label"] = number % 4  # type: ignore[assignment]
        if kind == "names":
            row["names"] = NAMES[number % 4]  # type: ignore[assignment]
    features = {"image": {"_type": "Image"}, "label": {"names": NAMES, "_type": "ClassLabel"}}
    if find_spec("datasets"):
        import datasets

        made = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
        if kind == "labels":
            made = made.cast_column("label", datasets.ClassLabel(names=NAMES))
        made.to_parquet(str(path))
    else:
        about = {"huggingface": json.dumps({"info": {"features": features if kind == "labels" else {}}})}
        pq.write_table(pa.Table.from_pylist(rows).replace_schema_metadata(about), path)
    return folder / "data" if kind != "names" else path


def saved_to_disk(folder: Path) -> Path:
    """Write a folder as `Dataset.save_to_disk` does."""
    out = folder / "saved"
    rows = [{"image": {"bytes": jpeg(n), "path": None}, "text": caption(n)} for n in range(NUM_SAMPLES)]
    if find_spec("datasets"):
        import datasets

        datasets.Dataset.from_list(rows).cast_column("image", datasets.Image()).save_to_disk(str(out))
        return out
    out.mkdir()
    name, content = "data-00000-of-00001.arrow", pa.Table.from_pylist(rows)
    with pa.OSFile(str(out / name), "wb") as sink, pa.ipc.new_stream(sink, content.schema) as writer:
        writer.write_table(content)
    write(out / "state.json", json.dumps({"_data_files": [{"filename": name}], "_split": None}))
    write(out / "dataset_info.json", json.dumps({"features": {"image": {"_type": "Image"}}}))
    return out


def imagefolder(folder: Path) -> Path:
    """Write the folder that `datasets` loads as "imagefolder", with captions in metadata.jsonl."""
    files = images(folder / "train")
    lines = [json.dumps({"file_name": file.name, "text": caption(n)}) for n, file in enumerate(files)]
    write(folder / "train" / "metadata.jsonl", "\n".join(lines))
    return folder / "train"


def captioned_folder(folder: Path) -> Path:
    """Write images with a text file of the same name next to each, as trainers of LoRA read them."""
    for number, file in enumerate(images(folder / "10_concept")):
        write(file.with_suffix(".txt"), caption(number))
    return folder / "10_concept"


DATA: dict[str, Writer] = {
    "img2dataset: webdataset": lambda folder: img2dataset_output(folder, "webdataset"),
    "img2dataset: files": lambda folder: img2dataset_output(folder, "files"),
    "img2dataset: parquet": lambda folder: img2dataset_output(folder, "parquet"),
    "open_clip: csv, tabs, absolute paths": lambda folder: open_clip_csv(folder, absolute=True, separator="\t"),
    "open_clip: csv, commas, relative paths": lambda folder: open_clip_csv(folder, absolute=False, separator=","),
    "webdataset: jpg + txt": lambda folder: tar(
        folder / "a.tar", [{"jpg": jpeg(n), "txt": caption(n)} for n in range(NUM_SAMPLES)]
    ),
    "webdataset: jpg + json": lambda folder: tar(
        folder / "a.tar", [{"jpg": jpeg(n), "json": json.dumps({"caption": caption(n)})} for n in range(NUM_SAMPLES)]
    ),
    "webdataset: jpg + cls": lambda folder: tar(
        folder / "a.tar", [{"jpg": jpeg(n), "cls": str(n % 4)} for n in range(NUM_SAMPLES)]
    ),
    "table: columns photo and description": described_csv,
    "Kaggle: image_id and label": kaggle_csv,
    "ImageNet: train and val": lambda folder: class_folders(folder, "train", "val"),
    "class folders, one split": class_folders,
    "datasets: Parquet with captions": lambda folder: hub_parquet(folder, kind="captions"),
    "datasets: Parquet with ClassLabel": lambda folder: hub_parquet(folder, kind="labels"),
    "Parquet with integers and names": lambda folder: hub_parquet(folder, kind="names"),
    "datasets: save_to_disk": saved_to_disk,
    "datasets: imagefolder": imagefolder,
    "kohya: images and texts": captioned_folder,
    "photos": lambda folder: images(folder / "photos")[0].parent,
}
