"""Add the locations that were read, and the ones that the data have, to errors about missing captions or values."""

from __future__ import annotations

from vfm.data.samples.caption_templates import columns_of
from vfm.data.samples.shards import Opening, shard_format
from vfm.data.samples.spec import DatasetSpec
from vfm.storage import files


def location_hint(reason: str, path: str, spec: DatasetSpec) -> str:
    """Format the locations of captions or values that a spec reads, and the ones that the data have instead.

    Args:
        reason: Reason why the first sample is bad. Other reasons have no hint.
        path: The first file of the data, or their folder.
        spec: Names the locations.
    """
    if reason == "missing_value":
        return f"; expected values of {', '.join(spec.columns)}{_fields_of_json(path, spec)}"
    if reason != "missing_caption":
        return ""
    locations = ", ".join(f"{language} in {source}" for language, source in spec.texts.items())
    return f"; expected captions {locations}: set texts to their location{_other_locations(path, spec)}"


def _other_locations(path: str, spec: DatasetSpec) -> str:
    if files.is_directory(path):
        return ", txt, json.FIELD, or {label} in a template for the class folder"
    return _fields_of_json(path, spec) if "json" in columns_of(spec.texts.values()) else ""


def _fields_of_json(path: str, spec: DatasetSpec) -> str:
    if not files.without_query(path).endswith(".tar"):
        return ""
    tar = shard_format("tar")
    reader = tar.open(tar.find(path)[0], spec, Opening(limit=1))
    record = next(reader.records([0], ["json"]), None) if len(reader) else None
    return f"; the first json has {', '.join(record)}" if record else ""
