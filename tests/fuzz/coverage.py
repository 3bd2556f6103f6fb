"""`make fuzz-coverage`: libFuzzer damages the file of a reader in ways that lead to new branches of its code.

Needs atheris. Anything but a bad sample or an error of the user ends it, and the bytes are kept as a file.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from vfm.base import UserError

CORPUS = Path(__file__).parent / "corpus"
ENDINGS = {
    "tar": "tar",
    "coco": "json",
    "csv": "csv",
    "jsonl": "jsonl",
    "images": "txt",
    "videos": "txt",
    "clips": "json",
}


def read_tar(file: Path) -> None:
    """Read every sample of a tar."""
    from vfm.data.samples.sample import BadSample
    from vfm.data.samples.spec import DatasetSpec
    from vfm.data.tar.webdataset import TarShard

    spec = DatasetSpec(texts={"en": "txt", "de": "json.de"}, label_key="cls", captions_optional=True)
    shard = TarShard.open(TarShard.find(str(file))[0], spec)
    for row in range(len(shard)):
        try:
            shard.read(row)
        except BadSample:
            shard.where(row)


def read_coco(file: Path) -> None:
    """Read the images and annotations of a COCO file."""
    from vfm.data.annotated.cleaning import clean_annotations
    from vfm.data.annotated.coco import CocoJson
    from vfm.data.annotated.tables import ObjectTable

    reader = CocoJson(path=str(file), image_root=str(file.parent), has_images=False)
    sizes = [image.size or (8, 8) for image in reader.list_images(None)]
    labels = {number: label for label, number in enumerate(reader.classes.ids)}
    ObjectTable.of(clean_annotations(reader.annotations(sizes), sizes, labels, lambda bad: None))


def read_table(file: Path) -> None:
    """List the images and captions of a csv or jsonl file."""
    from vfm.data.samples.spec import DatasetSpec
    from vfm.data.tables.table import table_entries

    for entry in table_entries(str(file), str(file.parent), DatasetSpec(texts={"en": "caption"})):
        str(entry.reason)


def read_image_list(file: Path) -> None:
    """List the images of a text file with the path of an image in each line."""
    from vfm.data.samples.spec import DatasetSpec
    from vfm.data.tables.table import table_entries

    for entry in table_entries(str(file), str(file.parent), DatasetSpec()):
        str(entry.reason)


def read_video_list(file: Path) -> None:
    """List the videos of Kinetics' csv, of lines `path label`, or of Something-Something's json, with their labels."""
    from vfm.data.videos.formats import list_videos
    from vfm.data.videos.stages import Videos

    config = Videos(kind="data.videos", name="v", path=str(file.parent), annotations=str(file))
    list_videos(config).labelled([])


READERS: dict[str, Callable[[Path], None]] = {
    "tar": read_tar, "coco": read_coco, "csv": read_table, "jsonl": read_table,
    "images": read_image_list, "videos": read_video_list, "clips": read_video_list,
}  # fmt: skip


def read_or_refuse(name: str, file: Path) -> None:
    """Read a file, or be refused with words. All else is an error of vfm."""
    try:
        READERS[name](file)
    except UserError as error:
        if not str(error).strip():
            raise RuntimeError("an error without words") from error


def seeds(name: str, folder: Path) -> None:
    """Write good files of a reader into a folder, as beginnings."""
    if name == "tar":
        from vfm.data import write_tar

        members = {"png": b"\x89PNG", "txt": b"a dog", "json": b'{"de": "ein Hund"}', "cls": b"1"}
        write_tar(folder / "good", [(f"{n}", members) for n in range(2)])
    elif name == "coco":
        box = {"image_id": 1, "category_id": 3, "bbox": [0, 1, 4, 5], "area": 20, "iscrowd": 0}
        marks = [{**box, "id": 1, "segmentation": [[0, 1, 4, 1, 4, 6]]}]
        marks += [{**box, "id": 2, "segmentation": {"counts": [2, 4, 58], "size": [8, 8]}, "iscrowd": 1}]
        images = [{"id": 1, "file_name": "a.png", "width": 8, "height": 8}]
        content = {"images": images, "categories": [{"id": 3, "name": "dog"}], "annotations": marks}
        (folder / "good").write_text(json.dumps(content))
    elif name == "csv":
        (folder / "good").write_text('image,caption\na.png,"a ""red"" dog"\nb.png,\n')
    elif name == "images":
        (folder / "good").write_text("a.png\nb/c.jpg\n\nb/c.jpg\n")
    elif name == "videos":
        rows = "label,youtube_id,time_start,time_end,split\ndog run,a,1,11.5,train\n"
        (folder / "good").write_text("a.mp4 1\nclips/b 30 2\nc,0\n")
        (folder / "kinetics").write_text(rows)
    elif name == "clips":
        (folder / "good").write_text('[{"id": "1", "template": "Moving [something]"}, {"id": 2, "label": "up"}]')
    else:
        (folder / "good").write_text('{"image": "a.png", "caption": ["a dog", "ein Hund"]}\n{"image": "b.png"}\n')


def main() -> None:
    """Run one reader under libFuzzer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--seconds", type=int, default=600)
    args = parser.parse_args()
    import atheris

    with atheris.instrument_imports(include=["vfm.data", "vfm.storage"]):
        import vfm.data.annotated.cleaning
        import vfm.data.annotated.coco
        import vfm.data.tables.table
        import vfm.data.tar.webdataset
        import vfm.data.videos.formats  # noqa: F401

    beginnings = Path(tempfile.mkdtemp(prefix="vfm-coverage-"))
    seeds(args.reader, beginnings)
    for file in (CORPUS / args.reader).glob("*"):
        shutil.copy(file, beginnings)
    file = Path(tempfile.mkdtemp(prefix="vfm-coverage-", dir="/dev/shm")) / f"x.{ENDINGS[args.reader]}"

    file.write_bytes((beginnings / "good").read_bytes())
    READERS[args.reader](file)  # raises if the good file is none

    def attempt(data: bytes) -> None:
        file.write_bytes(data)
        read_or_refuse(args.reader, file)

    findings = CORPUS / args.reader
    findings.mkdir(parents=True, exist_ok=True)
    options = [f"-max_total_time={args.seconds}", f"-artifact_prefix={findings}/", "-timeout=20", "-rss_limit_mb=2048"]
    atheris.Setup([sys.argv[0], *options, "-max_len=20000", str(beginnings)], attempt)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
