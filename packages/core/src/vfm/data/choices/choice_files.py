"""Work of `data.choices`: import a caption-choice benchmark, from its authors' files or from JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vfm.base import UserError
from vfm.data.choices.benchmarks import (
    QUESTIONS_FILE,
    is_winoground,
    read_choice_image,
    read_mmvp,
    read_sugarcrepe,
    read_winoground,
)
from vfm.data.choices.choices import Choice, write_choices
from vfm.data.choices.stages import ChoiceFiles
from vfm.data.samples.sample import BadSample
from vfm.data.samples.texts import OnBad
from vfm.interfaces import ChoiceDataset, Context, Preflight
from vfm.storage import files


def import_choices(config: ChoiceFiles, ctx: Context) -> ChoiceDataset:
    """Copy the items with their images into one small file."""
    first: list[str] = []

    def skip(reason: str, where: str) -> None:
        first[:] = first or [where]
        ctx.skip(reason, where)

    dataset = write_choices(ctx.directory, read_choices(config.path, skip, config.image_root))
    bad = ctx.bad.total()
    total = dataset.num_pairs + bad
    if bad > config.max_bad_fraction * total or not dataset.num_pairs:
        reasons = "there are no items"
        if ctx.bad:
            reasons = ", ".join(f"{reason} ({count})" for reason, count in ctx.bad.items())
        if first:
            reasons += f"; the first is {first[0]}"
        raise UserError(f"{config.name}: {bad} of {total} items in {config.path} are bad: {reasons}")
    return dataset


def check_choices(config: ChoiceFiles, ctx: Preflight) -> None:
    """Read the first item."""
    bad: list[tuple[str, str]] = []
    items = read_choices(config.path, lambda reason, where: bad.append((reason, where)), config.image_root)
    if next(items, None) is None:
        first = f": {bad[0]}" if bad else ""
        raise UserError(f"{config.name}: no usable item in {config.path}{first}")


def read_choices(path: str, on_bad: OnBad, image_root: str | None = None) -> Iterator[Choice]:
    """Yield the items of a benchmark, except for items with a bad image.

    Args:
        path: MMVP-VLM's folder, SugarCrepe's JSON file or a folder of such files, Winoground's `examples.jsonl` or
            parquet file, or items in JSON lines.
        on_bad: called with (reason, where) of each bad item.
        image_root: folder of SugarCrepe's or Winoground's images.

    Raises:
        UserError: If the path is none of these.
    """
    for item in _read(path, on_bad, image_root):
        try:
            "".join((item.key, item.pattern, *item.statements)).encode()
        except UnicodeEncodeError:  # half a surrogate pair, which JSON can express and no text contains
            on_bad("wrong_encoding", f"{path}: item {item.key!a}")
        else:
            yield item


def _read(path: str, on_bad: OnBad, image_root: str | None) -> Iterator[Choice]:
    if path.endswith(".parquet") or (path.endswith(".jsonl") and is_winoground(path)):
        return read_winoground(Path(path), image_root, on_bad)
    if path.endswith(".jsonl"):
        return _read_jsonl(path, on_bad)
    if path.endswith(".json"):
        return read_sugarcrepe([Path(path)], image_root, on_bad)
    if not (Path(path) / QUESTIONS_FILE).is_file():
        subsets = sorted(Path(path).glob("*.json"))
        if subsets:
            return read_sugarcrepe(subsets, image_root, on_bad)
    return read_mmvp(Path(path), on_bad)


def _read_jsonl(path: str, on_bad: OnBad) -> Iterator[Choice]:
    """Yield items from lines `{"images": [paths], "statements": [...], "truth": [...], "pattern": ..., "key": ...}`."""
    for number, line in enumerate(files.read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}: line {number}"
        try:
            yield _choice(line, str(number), where, Path(path).parent)
        except BadSample as bad:
            count = 1
            if bad.reason == "broken_json":  # a line holds several items if the line break between them is damaged
                count = max(1, line.count('"statements"'))
            for _ in range(count):
                on_bad(bad.reason, bad.where)


def _choice(line: str, number: str, where: str, folder: Path) -> Choice:
    try:
        item: dict[str, Any] = json.loads(line)
    except (ValueError, RecursionError):
        raise BadSample("broken_json", where) from None
    try:
        key, pattern, statements = str(item.get("key", number)), item.get("pattern", ""), item["statements"]
        if not isinstance(statements, list) or not all(isinstance(text, str) for text in (pattern, *statements)):
            raise TypeError("expected texts")
        if not all(type(index) is int for index in item["truth"]):
            raise TypeError("expected indices of images")
        images = [read_choice_image(str(folder), name) for name in item["images"]]
        return Choice(key, pattern, images, statements, item["truth"])
    except (ValueError, KeyError, TypeError, AttributeError):  # the fields are missing or do not fit together
        raise BadSample("unreadable_row", where) from None
