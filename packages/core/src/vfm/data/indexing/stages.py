"""Settings of every stage that indexes images which stay where they are."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from vfm.interfaces import (
    Stage,
)
from vfm.storage.files import expand_paths

Verify = bool | Literal["all"]


class ImageFiles(Stage):
    """Base of all stages that index a user's images. The images stay where they are."""

    path: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="your data, local or remote: tars as `{000..009}.tar`, a list or a folder of tars, a folder of"
        " images, a CLIP_benchmark folder, a table (csv, tsv, jsonl, parquet), COCO's captions (json), a dataset that"
        " Hugging Face's datasets saved (folder), a list of image paths (txt); set it with --set 'NAME.path=...'"
    )
    format: Literal["auto", "webdataset", "folder", "table", "parquet", "coco"] = Field(
        "auto", description="format of the path; auto: by the file names"
    )
    image_key: str | None = Field(
        None, description="tars: extensions of the image, `jpg,png`; tables: column of the image or its path"
    )
    image_root: str | None = Field(
        None,
        description="folder that a table's image paths are relative to and may not leave; default: the table's; of"
        " COCO's captions: the folder beside them that has the images",
    )
    num_samples: int | None = Field(None, ge=1, description="use only the first N samples; default: all")
    max_bad_fraction: float = Field(0.05, ge=0, le=1, description="tolerated fraction of bad samples")
    verify: Verify = Field(
        True,
        description="read every sample of shards without a known count and leave bad ones out; all: also of parquet and"
        " of tars beside img2dataset's statistics, which have a count; false: only count",
    )

    def sources(self) -> Iterable[str]:
        """Return the files behind `path`."""
        root = self.image_root
        return [*expand_paths(self.path), *([root] if root and root != "/" else [])]
