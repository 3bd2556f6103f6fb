"""Settings of all stages that index a user's images without copying them."""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from vfm.base import Incidental
from vfm.data.samples.columns import check_names
from vfm.interfaces import Stage
from vfm.storage.path_patterns import expand_paths

Verify = bool | Literal["all", "decode"]
ArrowCopy = Annotated[
    bool,
    Incidental(unless="arrow_copy"),
    Field(
        description="also write an uncompressed Arrow copy of each Parquet file beside the index. It is mapped into"
        " memory, so that samples are read in random order without decoding a row group for each"
    ),
]
"""Field of the stages that index tables."""


class ImageFiles(Stage):
    """Base of all stages that index a user's images. The images stay where they are."""

    path: str | Annotated[list[str], Field(min_length=1)] = Field(
        description="your data, local or remote: tars as `{000..009}.tar`, a list or a folder of tars, a folder of"
        " images, a CLIP_benchmark folder, a table (csv, tsv, jsonl, parquet), COCO's captions (json), a dataset that"
        " Hugging Face's datasets saved (folder), a list of image paths (txt). Set it with --set 'NAME.path=...'"
    )
    format: Literal["auto", "webdataset", "folder", "table", "parquet", "coco"] = Field(
        "auto", description="format of the path (auto: by the file names)"
    )
    image_key: str | None = Field(
        None,
        description="tars: extensions of the image, `jpg,png`; tables: column of the image or its path, or a"
        " template, `{image_id}.jpg`",
    )
    image_root: str | None = Field(
        None,
        description="folder that a table's image paths are relative to and may not leave (default: the table's folder,"
        " and for COCO's captions the folder next to them that has the images)",
    )
    columns: Annotated[list[str], AfterValidator(check_names)] = Field(
        default=[],
        description="further values of each sample, for losses and reports: columns of a table, or fields of a tar's"
        " json, such as [weight, site]. A sample without one is bad",
    )
    num_samples: int | None = Field(None, ge=1, description="use only the first N samples (default: all)")
    max_bad_fraction: float = Field(0.05, ge=0, le=1, description="tolerated fraction of bad samples")
    verify: Verify = Field(
        True,
        description="true: read every sample of shards without a known count, and leave bad samples out. all: also read"
        " parquet files and tars with img2dataset's statistics, whose count is known. decode: also decode every image,"
        " to find images that are cut off. false: only count",
    )
    arrow_copy: ArrowCopy = False

    def sources(self) -> Iterable[str]:
        """List the files behind `path`."""
        paths = list(expand_paths(self.path))
        if self.image_root and self.image_root != "/":
            paths.append(self.image_root)
        return paths
