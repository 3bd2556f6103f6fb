"""SugarCrepe and Winoground as their authors publish them.

SugarCrepe: a JSON file a subset, {number: {filename, caption, negative_caption}}, with the pictures of COCO val2017.
Winoground: `examples.jsonl` with a folder `images`, or the hub's parquet with the pictures inside.

Source: Hsieh et al. 2023, SugarCrepe (arXiv:2306.14610); Thrush et al. 2022, Winoground (arXiv:2204.03162).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from vfm.config import UserError
from vfm.data import files
from vfm.data.choices import Choice
from vfm.data.images import decode_image
from vfm.data.sample import BadSample

OnBad = Callable[[str, str], None]
SUGARCREPE, WINOGROUND = ("filename", "caption", "negative_caption"), ("image_0", "image_1", "caption_0", "caption_1")


def read_sugarcrepe(paths: list[Path], image_root: str | None, on_bad: OnBad) -> Iterator[Choice]:
    """One picture, a right and a wrong caption; the pattern is the subset, as its file is named.

    Raises:
        UserError: a file is not in SugarCrepe's form, or nothing tells where the pictures are.
    """
    if image_root is None:
        raise UserError(f"{paths[0]}: SugarCrepe's pictures are COCO's; give their folder (val2017) as image_root")
    for path in paths:
        for number, record in _records_by_number(path):
            where = f"{path}: item {number}"
            filename, *captions = _strings(record, SUGARCREPE, where)
            try:
                yield Choice(f"{path.stem}/{number}", path.stem, [read_image(image_root, filename)], captions, [0, -1])
            except BadSample as bad:
                on_bad(bad.reason, bad.where)


def read_winoground(path: Path, image_root: str | None, on_bad: OnBad) -> Iterator[Choice]:
    """Two pictures, two captions of the same words; the pattern is what is swapped (`collapsed_tag`)."""
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _json_lines(path)
    root = image_root or str(path.parent / "images")
    for number, record in enumerate(rows):
        where = f"{path}: item {record.get('id', number)}"
        if missing := [name for name in WINOGROUND if not record.get(name)]:
            raise UserError(f"{where}: no {missing[0]}; {', '.join(WINOGROUND)} are wanted")
        captions = [str(record[name]) for name in WINOGROUND[2:]]
        try:
            images = [_picture(record[name], root, where) for name in WINOGROUND[:2]]
            yield Choice(
                str(record.get("id", number)), str(record.get("collapsed_tag") or ""), images, captions, [0, 1]
            )
        except BadSample as bad:
            on_bad(bad.reason, bad.where)


def is_winoground(path: str) -> bool:
    """Whether JSON lines are Winoground's and not our own, by their first line."""
    first = files.read_text(path).lstrip().partition("\n")[0]
    return f'"{WINOGROUND[0]}"' in first


def read_image(root: str, name: str) -> bytes:
    """The bytes of an image that can be decoded.

    Raises:
        BadSample: it leaves `root`, is not there, or cannot be read.
    """
    path = files.join_inside(root, name)
    if path is None:
        raise BadSample("unsafe_path", name)
    try:
        data = files.read_bytes(path)
    except OSError:
        raise BadSample("missing_image", path) from None
    decode_image(data, path)
    return data


def _records_by_number(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        found = json.loads(files.read_text(str(path)))
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: SugarCrepe's form is wanted, records by number; this is a {type(found).__name__}")
    yield from found.items()


def _json_lines(path: Path) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(files.read_text(str(path)).split("\n"), start=1):
        if line.strip():
            try:
                yield dict(json.loads(line))
            except (ValueError, TypeError) as error:
                raise UserError(f"{path}: line {number}: not readable as a JSON record: {error}") from None


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    from vfm.data.parquet import open_parquet

    with open_parquet(str(path)) as file:
        for batch in file.iter_batches(16):
            yield from batch.to_pylist()


def _strings(record: Any, names: tuple[str, ...], where: str) -> list[str]:
    values = [record.get(name) for name in names] if isinstance(record, dict) else []
    found = [value for value in values if isinstance(value, str) and value]
    if len(found) < len(names):
        raise UserError(f"{where}: {', '.join(names)} are wanted, as texts")
    return found


def _picture(value: Any, root: str, where: str) -> bytes:
    """The picture in a parquet cell ({bytes, path}), or that of a name, which Winoground writes without its `.png`."""
    if isinstance(value, str):
        return read_image(root, value if Path(value).suffix else f"{value}.png")
    data = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise BadSample("missing_image", where)
    decode_image(data, where)
    return data
