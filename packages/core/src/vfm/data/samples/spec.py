"""Locations of a sample's parts in its shard, stored as `index.json` next to the index of shards."""

from __future__ import annotations

from pydantic import Field

from vfm.base import Config
from vfm.data.samples.sample import BadSample

MAX_CLASSES = 100_000  # a larger number is not a class, and names for all numbers up to it would fill the memory


HIDDEN = -1  # label that public test sets have in place of the true one


class DatasetSpec(Config):
    """Parts to read of each sample."""

    image_key: str | None = Field(
        None, description="tars: extensions of the image, `jpg,png`; tables: column of the image, or a template"
    )
    images: bool = Field(True, description="false: parquet with captions only")
    texts: dict[str, str] = Field(
        default={},
        description="language: location of its captions, `txt`, `txt.PART`, `json.FIELD` or a column, or a template"
        " with locations in braces",
    )
    value_names: dict[str, list[str]] = Field(
        default={}, description="location: names of the numbers there, for templates of captions"
    )
    captions_optional: bool = Field(False, description="keep samples without a caption, or with an unreadable caption")
    label_key: str | None = Field(None, description="location of the class: `cls`, `json.FIELD` or a column")
    labels_key: str | None = Field(
        None, description="tars: location of several labels, `npy` (one flag per class) or `json.FIELD` (a list)"
    )
    columns: list[str] = Field(default=[], description="locations of further values: `json.FIELD` or columns")
    class_names: list[str] = Field(default=[], description="class names in the order of the labels")
    image_root: str = Field(
        "", description="folder of images that a column names by path (empty: the folder of the file with the column)"
    )
    keys_repeat: bool = Field(
        False, description="samples in several shards have the same key, so the name of its shard is part of each key"
    )
    arrow_copy: bool = Field(False, description="tables have Arrow copies, from which samples are read")

    def label_of(self, value: object, where: str) -> int:
        """Convert the label or the name of a class to its label.

        Raises:
            BadSample: If the value is neither, or is out of range.
        """
        if isinstance(value, str) and value in self.class_names:
            return self.class_names.index(value)
        try:
            label = int(value)  # type: ignore[call-overload]
        except (TypeError, ValueError, OverflowError):  # the last: infinity
            unknown = f" ({value!r} is not a class name)" if isinstance(value, str) and value else ""
            raise BadSample("missing_label", f"{where}{unknown}") from None
        if isinstance(value, float) and value != label:
            raise BadSample("missing_label", where)
        if label == HIDDEN:
            raise BadSample("missing_label", f"{where} (label {HIDDEN})")
        if label < 0 or (self.class_names and label >= len(self.class_names)):
            raise BadSample("unknown_label", f"{where} (label {label} of {len(self.class_names)} classes)")
        return int(label)
