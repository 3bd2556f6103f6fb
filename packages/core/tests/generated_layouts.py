"""Layouts of a user's data, drawn from a seed: good, damaged and strange folders, tars and tables of tiny images."""

from __future__ import annotations

import csv
import io
import json
import os
import random
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_samples import encoded

PNG = encoded(1, size=(3, 2))
IMAGES = (PNG, PNG, PNG, PNG[:20], b"", b"no image")
WORDS = ("a dog", "", 'a "red" dog', "zwei\nZeilen", "日本語", "x" * 600, " ", "\x00", "a,b;c\td")


@dataclass
class Drawn:
    """A layout: the stage's settings, and for each source the number of its units, None if it is not known."""

    kind: str
    fields: dict[str, object]
    sizes: dict[str, int | None] = field(default_factory=dict)


def write_tree(root: Path, rng: random.Random) -> int:
    """Write a folder of class folders, and count its entries apart from folders."""
    outside = root.parent / "outside"
    outside.mkdir()
    (outside / "x.png").write_bytes(PNG)
    folders = ["cat", "dog", "dog/deep", ".hidden", "cat/.cache"]
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
    names = ["a.png", "b.PNG", "a.txt", "b.txt", ".a.png", "c.heic", "c.txt", "README.md", "index.txt", "no_ending"]
    names += ["ü b.png", "d.tar.png", "e..png", "..png", "f.json", "g.xyz", "x" * 200 + ".png", "\udcff.png"]
    for folder in folders:
        for name in rng.sample(names, rng.randrange(len(names))):
            text = rng.choice(WORDS).encode() if not name.endswith("json") else b'{"a": 1}'
            (root / folder / name).write_bytes(rng.choice(IMAGES) if "png" in name.lower() else text)
    (root / "cat/first.png").write_bytes(PNG)
    targets = ["cat", "..", "../outside", "../outside/x.png", "missing.png", "cat/first.png", "l0.png", "cat/.cache"]
    for number in range(rng.randrange(5)):
        name = rng.choice(["l{}", "l{}.png", ".l{}", "l{}.txt", "cat/l{}.png"]).format(number)
        (root / name).symlink_to(root / rng.choice(targets))
    if rng.random() < 0.3:
        os.mkfifo(root / "dog/pipe.png")
    if rng.random() < 0.2:
        os.link(root / "cat/first.png", root / "dog/hard.png")
    return sum(_num_entries(folder, names, subfolders) for folder, subfolders, names in os.walk(root))


def _num_entries(folder: str, names: list[str], subfolders: list[str]) -> int:
    return len(names) + sum(os.path.islink(os.path.join(folder, name)) for name in subfolders)


def folder(path: Path, rng: random.Random) -> Drawn:
    """Draw a folder for one of the three stages that read folders."""
    root = path / "data"
    root.mkdir()
    kind = rng.choice(["data.images", "data.pairs", "data.labeled"])
    fields: dict[str, object] = {"path": str(root)}
    if kind == "data.pairs" and rng.random() < 0.5:
        fields["texts"] = rng.choice(["json.a", "a photo of {label}", "txt.lines"])
    return Drawn(kind, fields, {str(root): write_tree(root, rng)})


def _add(tar: tarfile.TarFile, name: str, data: bytes, **changes: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field_name, value in changes.items():
        setattr(info, field_name, value)
    tar.addfile(info, io.BytesIO(data))


def _add_strange(tar: tarfile.TarFile, rng: random.Random) -> None:
    """Add a member that is not part of a usual sample."""
    number = rng.randrange(100)
    match rng.randrange(9):
        case 0:
            _add(tar, f"folder{number}/", b"", type=tarfile.DIRTYPE)
        case 1:
            _add(tar, f"{number}.png", b"", type=tarfile.SYMTYPE, linkname="/etc/passwd")
        case 2:
            _add(tar, f"{number}.png", b"", type=tarfile.LNKTYPE, linkname="0.png")
        case 3:
            _add(tar, f"{number}.pipe", b"", type=tarfile.FIFOTYPE)
        case 4:
            _add(tar, rng.choice([".hidden", "a/.hidden.png", "README", "README.md", "no_ending"]), b"text")
        case 5:
            _add(tar, rng.choice([f"a.{number}.png", f"{number}.heic", f"{number}.seg.png"]), PNG)
        case 6:
            _add(tar, "0.png", PNG)
        case 7:
            _add(tar, f"{number}/{'long' * 40}.png", PNG)
        case 8:
            _add(tar, f"{number}.tar", tar_with([("0.png", PNG)]))


def _add_sparse(tar: tarfile.TarFile, number: int) -> None:
    """Add a sparse member as GNU tar writes it in pax 1.0: the map of its data is the first block."""
    data = b"1\n0\n600\n".ljust(512, b"\0") + bytes(600)
    headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": f"s{number}.png"}
    _add(tar, f"GNUSparseFile.0/s{number}.png", data, pax_headers={**headers, "GNU.sparse.realsize": str(1 << 30)})


def tar_with(members: Iterable[tuple[str, bytes]]) -> bytes:
    """Write a tar of members in memory."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in members:
            _add(tar, name, data)
    return stream.getvalue()


def tar_bytes(rng: random.Random) -> bytes:
    """Draw the bytes of a tar."""
    stream = io.BytesIO()
    form = rng.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
    comment = {"comment": "x" * rng.randrange(900)} if form == tarfile.PAX_FORMAT and rng.random() < 0.5 else None
    with tarfile.open(fileobj=stream, mode="w", format=form, pax_headers=comment) as tar:
        for number in range(rng.randrange(1, 7)):
            prefix = rng.choice(["", "", "./", "folder/", "ü" * 60 if form != tarfile.USTAR_FORMAT else ""])
            _add(tar, f"{prefix}{number}.png", rng.choice(IMAGES))
            if rng.random() < 0.9:
                _add(tar, f"{prefix}{number}.txt", rng.choice(WORDS).encode())
            if rng.random() < 0.3 and form != tarfile.USTAR_FORMAT:
                _add_strange(tar, rng)
            if rng.random() < 0.1 and form == tarfile.PAX_FORMAT:
                _add_sparse(tar, number)
    return stream.getvalue()


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Cut, flip, insert, remove or append bytes."""
    place = rng.randrange(len(data))
    match rng.randrange(9):
        case 0:
            return data[: max(1, place)]
        case 1:
            return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :]
        case 2:  # a header
            place = place // 512 * 512
            return data[:place] + rng.randbytes(512) + data[place + 512 :]
        case 3:
            return data[:place] + rng.randbytes(rng.randrange(700)) + data[place:]
        case 4:
            return data[:place] + data[place + rng.randrange(700) :]
        case 5:
            return data + rng.randbytes(rng.randrange(1, 3000))
        case 6:
            return data + bytes(rng.randrange(1, 30_000))
        case 7:
            return data + tar_bytes(rng)
        case _:
            return data.rstrip(b"\0") + bytes(rng.randrange(600))


def tars(path: Path, rng: random.Random) -> Drawn:
    """Draw one tar or several."""
    sizes: dict[str, int | None] = {}
    for number in range(rng.randrange(1, 4)):
        data = tar_bytes(rng)
        for _ in range(rng.choice([0, 1, 1, 2])):
            data = damaged(data, rng)
        file = path / f"{number}.tar"
        file.write_bytes(data)
        if rng.random() < 0.1:
            (path / f"{number}_stats.json").write_text(json.dumps({"successes": rng.randrange(9)}))
        sizes[str(file)] = len(data)
    kind = rng.choice(["data.images", "data.pairs"])
    return Drawn(kind, {"path": list(sizes)}, sizes)


def tar_folder(path: Path, rng: random.Random) -> Drawn:
    """Draw a folder with tars and other files."""
    layout = tars(path, rng)
    others = rng.sample(["notes.txt", ".DS_Store", "deep/x.png", "deep/.x.png"], rng.randrange(5))
    for name in others:
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_bytes(b"x")
    if rng.random() < 0.3:
        (path / "linked").symlink_to(path.parent)
    num_entries = sum(_num_entries(folder, names, subfolders) for folder, subfolders, names in os.walk(path))
    return Drawn(layout.kind, {"path": str(path)}, {str(path): num_entries, **layout.sizes})


def _rows(path: Path, rng: random.Random) -> list[dict[str, object]]:
    """Draw rows of a table, and write the images that they name."""
    for number in range(4):
        (path / f"{number}.png").write_bytes(IMAGES[number])
    names = ["0.png", "1.png", "2.png", "3.png", "missing.png", "../x.png", "/etc/passwd", ""]
    rows: list[dict[str, object]] = [{"image": "0.png", "caption": "a dog"}]
    while rng.random() < 0.9:
        rows += rng.randrange(1, 3) * [{"image": rng.choice(names), "caption": rng.choice(WORDS)}]
    return rows


def table(path: Path, rng: random.Random) -> Drawn:
    """Draw a csv, tsv, jsonl or text file."""
    kind = rng.choice(["csv", "tsv", "jsonl", "txt"])
    rows = _rows(path, rng)
    stream = io.StringIO(newline="")
    if kind in ("csv", "tsv"):
        end = rng.choice(["\n", "\r\n"])
        separator = "\t" if kind == "tsv" else rng.choice([",", ";"])
        writer = csv.DictWriter(stream, ["image", "caption"], lineterminator=end, delimiter=separator)
        writer.writeheader()
        for row in rows:
            writer.writerow(row)
            stream.write(end * (rng.random() < 0.2))
    elif kind == "jsonl":
        for row in rows:
            line = rng.choice([json.dumps(row), json.dumps(row), "{broken", "[1]", "", "  ", json.dumps(row) * 2])
            stream.write(f"{line}\n")
    else:
        stream.write("\n".join(rng.choice([str(row["image"]), ""]) for row in [*rows, *rows]))
    data = stream.getvalue().encode()
    for _ in range(rng.choice([0, 0, 1])):
        place = rng.randrange(len(data) or 1)
        data = data[:place] + rng.choice([b'"', b"\n", b"\xff", b"\n\n", b"\0", b""]) + data[place + 1 :]
    file = path / f"table.{kind}"
    file.write_bytes(data)
    stage = "data.images" if kind == "txt" else rng.choice(["data.images", "data.pairs"])
    lines = len(data.decode(errors="replace").replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n").split("\n"))
    return Drawn(stage, {"path": str(file)}, {str(file): lines if data else 0})


def parquet(path: Path, rng: random.Random) -> Drawn:
    """Draw Parquet with the paths of images, or with their bytes."""
    rows = _rows(path, rng)
    file = path / "table.parquet"
    if rng.random() < 0.5:
        rows = [{**row, "image": rng.choice(IMAGES)} for row in rows]
    pq.write_table(pa.Table.from_pylist(rows), file, row_group_size=rng.randrange(1, 5))
    in_bytes = isinstance(rows[0]["image"], bytes)
    verify = rng.choice([True, "all"])
    size = (len(rows) if verify == "all" else file.stat().st_size) if in_bytes else len(rows)
    return Drawn("data.pairs", {"path": str(file), "verify": verify}, {str(file): size})


def coco(path: Path, rng: random.Random) -> Drawn:
    """Draw COCO's captions."""
    for number in range(4):
        (path / f"{number}.png").write_bytes(IMAGES[number])
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(rng.randrange(1, 6))]
    images += rng.choice([[], [{"id": "x"}], [7], [{"id": 0, "file_name": "0.png"}]])
    annotations: list[object] = [{"image_id": 0, "caption": "a dog"}]
    while rng.random() < 0.8:
        image_id = rng.choice([0, 1, "2", 50, None, [1]])
        annotations.append(rng.choice([{"image_id": image_id, "caption": rng.choice(WORDS)}, None, "text"]))
    file = path / "captions_x.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations}))
    size = len(images) + len(annotations)
    return Drawn("data.pairs", {"path": str(file), "image_root": str(path)}, {str(file): size})


def caption_table(path: Path, rng: random.Random) -> Drawn:
    """Draw a table of captions without images."""
    layout = table(path, rng)
    return Drawn("data.pairs", {**layout.fields, "images": False, "texts": "caption"}, layout.sizes)
