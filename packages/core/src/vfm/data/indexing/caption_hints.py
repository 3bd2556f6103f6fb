"""The end of an error about absent captions: the locations that were read, and others in the data."""

from __future__ import annotations

from vfm.data.samples.caption_templates import columns_of
from vfm.data.samples.shards import Opening, shard_format
from vfm.data.samples.spec import DatasetSpec
from vfm.storage import files


def caption_hint(path: str, spec: DatasetSpec) -> str:
    """Name the locations of captions that a spec reads, and the ones that the data have instead.

    Args:
        path: the first file of the data, or their folder.
        spec: names the locations.
    """
    locations = ", ".join(f"{language} in {source}" for language, source in spec.texts.items())
    return f"; expected captions {locations}: set texts to their location{_other_locations(path, spec)}"


def _other_locations(path: str, spec: DatasetSpec) -> str:
    if files.is_directory(path):
        return ", txt, json.FIELD, or {label} in a template for the class folder"
    if not path.endswith(".tar") or "json" not in columns_of(spec.texts.values()):
        return ""
    tar = shard_format("tar")
    reader = tar.open(tar.find(path)[0], spec, Opening(limit=1))
    record = next(reader.records([0], ["json"]), None) if len(reader) else None
    return f"; the first json has {', '.join(record)}" if record else ""
