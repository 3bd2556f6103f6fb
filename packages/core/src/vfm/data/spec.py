"""Where the parts of a sample stand in its shard; kept as `index.json` beside the index of shards."""

from __future__ import annotations

from pydantic import Field

from vfm.config import Config
from vfm.data.sample import BadSample


class DatasetSpec(Config):
    """What to take of each sample."""

    image_key: str | None = Field(
        None, description="tar: the image's extensions, `jpg,png`; tables: the column of the image"
    )
    images: bool = Field(True, description="false: parquet of captions alone, whose images nobody has")
    texts: dict[str, str] = Field(
        default={}, description="language: where its captions stand, `txt`, `txt.PART`, `json.FIELD` or a column"
    )
    label_key: str | None = Field(None, description="where the class stands: `cls`, `json.FIELD` or a column")
    labels_key: str | None = Field(
        None, description="tar: where several labels of an image stand, `npy` (which it has) or `json.FIELD` (a list)"
    )
    class_names: list[str] = Field(default=[], description="in the order of the labels")

    def label_of(self, value: object, where: str) -> int:
        """The number of a class, from its number or its name.

        Raises:
            BadSample: neither, or none of the classes.
        """
        if isinstance(value, str) and value in self.class_names:
            return self.class_names.index(value)
        try:
            label = int(value)  # type: ignore[call-overload]
        except (TypeError, ValueError):
            raise BadSample("missing_label", where) from None
        if isinstance(value, float) and value != label:
            raise BadSample("missing_label", where)
        if label < 0 or (self.class_names and label >= len(self.class_names)):
            raise BadSample("unknown_label", f"{where} (label {label} of {len(self.class_names)} classes)")
        return int(label)
