"""Configuration of `data.annotated`, the stage that indexes images with objects and label maps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated as Typed, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.data.indexing.stages import ArrowCopy
from vfm.interfaces import AnnotatedImages, Artifact, Stage
from vfm.storage.path_patterns import expand_paths

Format = Literal[
    "auto", "coco", "coco_panoptic", "lvis", "objects365", "voc", "voc_maps", "yolo", "ade20k", "coco_stuff",
    "cityscapes", "label_maps", "webdataset", "hugging_face", "cvat", "darknet",
]  # fmt: skip
Fraction = Typed[float, Field(ge=0, le=1)]


class Annotated(Stage):
    """Index your own images with boxes, masks or label maps.

    Formats are COCO, LVIS, VOC, YOLO, CVAT, ADE20K and others.
    """

    kind: Literal["data.annotated"] = "data.annotated"
    path: str | Typed[list[str], Field(min_length=1)] = Field(
        description="root of the dataset, folder of its images, tars (`jpg + json`), or Parquet files with `objects`."
        " Set it with --set 'NAME.path=...'"
    )
    annotations: str | None = Field(
        None,
        description="JSON file of COCO, LVIS, Objects365 or panoptic annotations (also .gz), CVAT's XML, folder of"
        " YOLO's text files, or folder of label maps as PNG files (default: found in `path`)",
    )
    format: Format = Field("auto", description="format of the annotations (auto: by the files)")
    split: str = Field("train", description="split of a dataset with several, such as val2017 or validation")
    names: str | list[str] | None = Field(
        None,
        description="class names in the order of their numbers, or a YAML file with `names` (default: the dataset's)",
    )
    classes: list[str] = Field(
        [], description="names of the classes to keep, in the order of the labels (default: all)"
    )
    box_format: Literal["xywh", "xyxy", "cxcywh"] = Field(
        "xywh", description="numbers of a box in tars and Parquet files, in pixels"
    )
    keep_empty: bool = Field(True, description="keep images without objects. For training, use false")
    images: bool = Field(True, description="false: labels only, to score result files without the images")
    max_bad_fraction: Fraction = Field(0.05, description="tolerated fraction of bad images, and of bad annotations")
    arrow_copy: ArrowCopy = False

    makes: ClassVar[type[Artifact]] = AnnotatedImages
    work: ClassVar[str] = "vfm.data.annotated.indexing:index_annotated"
    checks: ClassVar[str] = "vfm.data.annotated.indexing:check_annotated"

    @model_validator(mode="after")
    def _copied_images(self) -> Annotated:
        if self.arrow_copy and not self.images:
            raise ValueError("arrow_copy is only valid with images: true")
        return self

    def sources(self) -> Iterable[str]:
        """List the files behind `path`, the annotations and the file of class names."""
        paths = list(expand_paths(self.path))
        if self.annotations:
            paths.append(self.annotations)
        if isinstance(self.names, str):
            paths.append(self.names)
        return paths
