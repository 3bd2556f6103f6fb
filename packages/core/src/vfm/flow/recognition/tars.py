"""Recognise the samples of a WebDataset tar by the files next to its first images."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from vfm.base import UserError
from vfm.data.samples.captions import clean_captions, decode_json
from vfm.data.samples.images import IMAGE_EXTENSIONS
from vfm.data.samples.sample import BadSample
from vfm.data.tables.table import CAPTION_COLUMNS
from vfm.data.tar.scan import scan_tar
from vfm.storage import files

KINDS = {"cls": "data.labeled", "npy": "data.tagged", "txt": "data.pairs", "json": "data.pairs"}
NUM_SAMPLES = 3


def tar_fields(path: str) -> dict[str, Any]:
    """Choose the kind of stage that imports a tar, and the place of captions that are only in its json.

    Raises:
        UserError: If its images have neither labels nor captions.
    """
    slots = ["image", *KINDS]
    places = scan_tar(path, slots, IMAGE_EXTENSIONS, limit=NUM_SAMPLES).places
    present = [slot for number, slot in enumerate(slots) if slot in KINDS and (places[:, number, 0] >= 0).any()]
    if not present:
        raise UserError(f"{path}: its images have neither labels (cls, npy) nor captions (txt, json)")
    if present != ["json"]:
        return {"kind": KINDS[present[0]]}
    for start, size in places[:, slots.index("json")].tolist():
        if start >= 0:
            with suppress(BadSample):  # reported when the sample is read
                record = decode_json(files.read_bytes(path, start, start + size), path)
                field = _caption_field(record, path)
                if field:
                    return {"kind": "data.pairs", "texts": {"en": f"json.{field}"}}
                if "cls" in record or "label" in record:
                    return {"kind": "data.labeled", "label_key": f"json.{'cls' if 'cls' in record else 'label'}"}
    return {"kind": "data.pairs"}


def _caption_field(record: dict[str, Any], path: str) -> str:
    """Find the field of a json record with captions, by the usual names. Empty if it has none."""
    named = [name for name in CAPTION_COLUMNS if name in record]
    return next((name for name in named if clean_captions(record[name], path)), "")
