"""Import a caption-choice benchmark for `data.choices`, from its authors' files or from JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from vfm.base import UserError
from vfm.data.choices.benchmarks import QUESTIONS_FILE, read_choice_image, read_mmvp, read_sugarcrepe
from vfm.data.choices.choices import Choice, load_choices, write_choices
from vfm.data.choices.pair_benchmarks import (
    has_pair_lines,
    pair_columns,
    read_eqben,
    read_pair_table,
    read_pairs,
    read_spatial,
    read_whatsup,
)
from vfm.data.choices.stages import ChoiceFiles, PooledChoices
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


def pool_choices(config: PooledChoices, ctx: Context) -> ChoiceDataset:
    """Join the items of several datasets. The pattern of an item is the name of its dataset."""

    def items() -> Iterator[Choice]:
        for ref in config.datasets:
            dataset = ctx.load(ref)
            name = ctx.name_of(dataset)
            chosen = list(range(dataset.num_pairs))
            if config.max_items and dataset.num_pairs > config.max_items:
                rng = np.random.default_rng(config.seed)
                chosen = sorted(rng.choice(dataset.num_pairs, config.max_items, replace=False).tolist())
            wanted = frozenset(chosen)
            for number, item in enumerate(load_choices(dataset)):
                if number in wanted:
                    yield replace(item, key=f"{name}/{item.key}", pattern=name)

    return write_choices(ctx.directory, items())


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
        path: MMVP-VLM's folder, a file of another benchmark (`pair_benchmarks`), a folder of such JSON files, or items
            in JSON lines.
        on_bad: Called with (reason, where) of each bad item.
        image_root: Folder of the images, if it is not next to the file.

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
    if path.endswith(".parquet") or (path.endswith(".jsonl") and has_pair_lines(path)):
        return read_pair_table(Path(path), image_root, on_bad)
    if path.endswith(".jsonl"):
        return _read_jsonl(path, on_bad)
    if path.endswith(".json"):
        return _read_json(Path(path), image_root, on_bad)
    if not (Path(path) / QUESTIONS_FILE).is_file():
        parts = sorted(Path(path).glob("*.json"))
        if parts:
            return chain.from_iterable(_read_json(part, image_root, on_bad) for part in parts)
    return read_mmvp(Path(path), on_bad)


def _read_json(path: Path, image_root: str | None, on_bad: OnBad) -> Iterator[Choice]:
    """Yield the items of a JSON file. Its first record determines the format.

    Raises:
        UserError: If the file is not JSON, or in no known format.
    """
    try:
        records = json.loads(files.read_text(str(path)))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON: {error}") from None
    if isinstance(records, dict):
        return read_sugarcrepe(path, records, image_root, on_bad)
    first = records[0] if isinstance(records, list) and records else None
    if pair_columns(first):
        return read_pairs(path, records, image_root, on_bad)
    if isinstance(first, list):
        return read_spatial(path, records, image_root, on_bad)
    for key, read in (("caption_options", read_whatsup), ("private_info", read_eqben)):
        if isinstance(first, dict) and key in first:
            return read(path, records, image_root, on_bad)
    raise UserError(
        f"{path}: expected SugarCrepe's records by number, or a list of pairs (image_0, image_1, caption_0, caption_1),"
        f" of What'sUp's records or of EqBen's, got a {type(records).__name__}"
    )


def _read_jsonl(path: str, on_bad: OnBad) -> Iterator[Choice]:
    """Yield items from JSON lines.

    A line is `{"images": [paths], "statements": [...], "truth": [...], "pattern": ..., "key": ...}`.
    """
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
        key = str(item.get("key", number))
        pattern = item.get("pattern", "")
        statements = item["statements"]
        if not isinstance(statements, list) or not all(isinstance(text, str) for text in (pattern, *statements)):
            raise TypeError("expected texts")
        if not all(type(index) is int for index in item["truth"]):
            raise TypeError("expected indices of images")
        images = [read_choice_image(str(folder), name) for name in item["images"]]
        return Choice(key, pattern, images, statements, item["truth"])
    except (ValueError, KeyError, TypeError, AttributeError):  # the fields are missing or do not fit together
        raise BadSample("unreadable_row", where) from None
