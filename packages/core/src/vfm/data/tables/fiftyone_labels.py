"""Read FiftyOne's `labels.json` with `classes` and a label for each file in the folder `data`.

Source: the format FiftyOneImageClassificationDataset, in FiftyOne's documentation of its exports.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from vfm.base import UserError
from vfm.storage import files

LABELS_FILE = "labels.json"
FOLDER = "data"
COLUMNS = ["image", "label"]
_HEAD = re.compile(rb'\s*\{\s*"(?:classes|labels)"\s*:')


def is_fiftyone_labels(path: str) -> bool:
    """Check whether a file is FiftyOne's json with a label for each image."""
    if not files.without_query(path).endswith(".json") or not files.exists(path) or files.is_directory(path):
        return False
    return bool(_HEAD.match(files.read_bytes(path, 0, 1 << 12)))


def fiftyone_classes(path: str) -> list[str]:
    """Read the names of the classes in the order of the labels. If the labels are names, there are none."""
    return list(map(str, _record(path).get("classes") or []))


def num_fiftyone_labels(path: str) -> int:
    """Count the entries."""
    return len(_record(path)["labels"])


def fiftyone_rows(path: str) -> Iterator[dict[str, Any]]:
    """Yield the image and the label of each entry. A label with a confidence is a record."""
    record = _record(path)
    classes = fiftyone_classes(path)
    folder = f"{path.rpartition('/')[0] or '.'}/{FOLDER}"
    names = {name.rpartition(".")[0]: name for name in files.walk(folder)} if files.is_directory(folder) else {}
    for stem, label in record["labels"].items():
        value = label.get("label") if isinstance(label, dict) else label
        if isinstance(value, int) and 0 <= value < len(classes):
            value = classes[value]
        yield {"image": f"{FOLDER}/{names.get(stem, stem)}", "label": value}


def _record(path: str) -> dict[str, Any]:
    try:
        record = json.loads(files.read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not readable as JSON: {' '.join(str(error).split())}") from None
    if not isinstance(record.get("labels"), dict) or not isinstance(record.get("classes") or [], list):
        raise UserError(f"{path}: expected `labels`, a label for each image, and a list `classes`, as FiftyOne writes")
    return dict(record)
