"""Captions of a tar that are in its json and differ from its txt, so that a user must choose."""

from __future__ import annotations

import re
from contextlib import suppress

from vfm.data import IMAGE_EXTENSIONS, BadSample
from vfm.data.samples.captions import clean_captions, decode_json, decode_text
from vfm.data.tables.table import CAPTION_COLUMNS
from vfm.data.tar.scan import scan_tar
from vfm.storage import files

NUM_SAMPLES = 3  # one may be bad
LANGUAGE = re.compile(r"[a-z]{2}(-[a-zA-Z]{2,4})?")


def other_captions(path: str) -> list[str]:
    """List the locations, such as `json.en`, of captions in the first samples of a tar that differ from their txt.

    A field counts if it is named like a language or a column of captions.
    """
    locations: dict[str, None] = {}
    places = scan_tar(path, ["image", "txt", "json"], IMAGE_EXTENSIONS, limit=NUM_SAMPLES).places
    for _, (text_at, text_size), (json_at, json_size) in places.tolist():
        if text_at < 0 or json_at < 0:
            continue
        with suppress(BadSample):  # reported when the sample is read
            text = decode_text(files.read_bytes(path, text_at, text_at + text_size), path).strip()
            record = decode_json(files.read_bytes(path, json_at, json_at + json_size), path)
            for name, value in record.items():
                captions = clean_captions(value, path)
                is_caption = name in CAPTION_COLUMNS or LANGUAGE.fullmatch(name)
                if is_caption and captions and not set(captions) <= {text, *text.splitlines()}:
                    locations[f"json.{name}"] = None
    return list(locations)
