"""Open torchvision datasets by name, from a local copy. Image files are listed, other datasets are packed as PNG.

The few datasets in pickles (CIFAR) are opened by torchvision only, which first checks the files' MD5 sums.
"""

from __future__ import annotations

import inspect
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vfm.base import UserError, did_you_mean
from vfm.data.samples.shards import Shard
from vfm.data.samples.spec import DatasetSpec
from vfm.data.tables.image_list import ImageEntry, write_image_lists

ROWS_PER_GROUP = 128  # images that are read together
ROWS_PER_SHARD = 10_000  # several shards, which several processes can read
PACKED = DatasetSpec(image_key="image", label_key="label")


def open_torchvision(name: str, root: str, split: str) -> Any:
    """Open a torchvision dataset without downloading anything.

    Args:
        name: Name of the dataset.
        root: Folder of its files.
        split: Name of the split.

    Raises:
        UserError: If torchvision has no such dataset or split, or its files are missing.
    """
    import torchvision.datasets as sets  # an optional extra; it imports torch

    known: dict[str, Any] = dict(inspect.getmembers(sets, inspect.isclass))
    if name not in known:
        raise UserError(f"torchvision has no dataset '{name}'{did_you_mean(name, known)}")
    kind = known[name]
    accepted = inspect.signature(kind).parameters
    arguments: dict[str, Any] = {"download": False} if "download" in accepted else {}
    if "split" in accepted:
        arguments["split"] = split
    elif "train" in accepted:
        arguments["train"] = split == "train"
    try:
        return kind(root, **arguments)
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(f"{root}: torchvision cannot read {name}: {' '.join(str(error).split())}") from None


def torchvision_classes(dataset: Any, name: str) -> list[str]:
    """List the class names of a dataset. If a class has several names (ImageNet), the first is used.

    Raises:
        UserError: If the dataset has no class names.
    """
    classes = getattr(dataset, "classes", None)
    if not classes:
        raise UserError(f"torchvision's {name} has no class names; give class_names, in the order of the labels")
    return [name[0] if isinstance(name, tuple) else str(name) for name in classes]


def torchvision_shards(dataset: Any, directory: Path) -> Iterator[Shard]:
    """Write the shards of a torchvision dataset.

    They are lists if the dataset has image files (`samples`), else parquet with PNG bytes.
    """
    samples = getattr(dataset, "samples", None)
    if samples:
        entries = (ImageEntry(Path(path).stem, str(Path(path).resolve()), label=label) for path, label in samples)
        yield from write_image_lists(directory, entries, PACKED)
        return
    yield from pack_shards(dataset, directory)


def pack_shards(dataset: Any, directory: Path) -> Iterator[Shard]:
    """Write a sequence of (PIL image, label) as parquet shards with PNG bytes in `directory`, and yield each."""
    for start in range(0, len(dataset), ROWS_PER_SHARD):
        yield _pack(dataset, range(start, min(start + ROWS_PER_SHARD, len(dataset))), directory)


def _pack(dataset: Any, rows: range, directory: Path) -> Shard:
    schema = pa.schema({"key": pa.string(), "image": pa.binary(), "label": pa.int32()})
    path = directory / f"packed-{rows.start // ROWS_PER_SHARD:05d}.parquet"
    with pq.ParquetWriter(path, schema, write_page_checksum=True) as writer:
        for start in range(rows.start, rows.stop, ROWS_PER_GROUP):
            group = []
            for row in range(start, min(start + ROWS_PER_GROUP, rows.stop)):
                image, label = dataset[row]
                buffer = io.BytesIO()
                image.save(buffer, "PNG")
                group.append({"key": f"{row:08d}", "image": buffer.getvalue(), "label": int(label)})
            writer.write_table(pa.Table.from_pylist(group, schema))
    return Shard.of(path, len(rows), format="parquet")
