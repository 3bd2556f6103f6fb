"""Configurations of the stages that make images with objects and label maps: `data.annotated`, `shapes.scenes`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated as Typed
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from vfm.artifacts import AnnotatedImages, Artifact
from vfm.files import expand_paths
from vfm.stage import Stage
from vfm.stages.shapes import ShapeImages

Format = Literal[
    "auto", "coco", "coco_panoptic", "lvis", "objects365", "voc", "voc_maps", "yolo", "ade20k", "coco_stuff",
    "cityscapes", "label_maps", "webdataset", "hugging_face",
]  # fmt: skip
Fraction = Typed[float, Field(ge=0, le=1)]


class Annotated(Stage):
    """Index your own images with boxes, masks or label maps: COCO, LVIS, VOC, YOLO, ADE20K, Cityscapes and others."""

    kind: Literal["data.annotated"] = "data.annotated"
    path: str | Typed[list[str], Field(min_length=1)] = Field(
        description="root of the dataset or folder of its images; tars (`jpg + json`) or Parquet files with `objects`;"
        " set it with --set 'NAME.path=...'"
    )
    annotations: str | None = Field(
        None,
        description="COCO, LVIS, Objects365, panoptic: the json file (also .gz); YOLO: folder of text files; label"
        " maps: folder of PNG files; default: found in `path`",
    )
    format: Format = Field("auto", description="format of the annotations; auto: by the files")
    split: str = Field("train", description="split of a dataset with several, such as val2017 or validation")
    names: str | list[str] | None = Field(
        None,
        description="class names in the order of their numbers, or a yaml file with `names`; default: the dataset's",
    )
    classes: list[str] = Field([], description="names of the classes to keep, in the order of the labels; default: all")
    box_format: Literal["xywh", "xyxy", "cxcywh"] = Field(
        "xywh", description="numbers of a box in tars and Parquet files, in pixels"
    )
    keep_empty: bool = Field(True, description="keep images without objects; false suits training")
    images: bool = Field(True, description="false: labels only, to score files of results; no image is looked for")
    max_bad_fraction: Fraction = Field(0.05, description="tolerated fraction of bad images, and of bad annotations")

    makes: ClassVar[type[Artifact]] = AnnotatedImages
    work: ClassVar[str] = "vfm.data.annotated.indexing:index_annotated"
    checks: ClassVar[str] = "vfm.data.annotated.indexing:check_annotated"

    def sources(self) -> Iterable[str]:
        """Return the files behind `path`, and those of the annotations."""
        named = [self.names] if isinstance(self.names, str) else []
        return [*expand_paths(self.path), *([self.annotations] if self.annotations else []), *named]


class ShapesScenes(ShapeImages):
    """Draw scenes of one to six scattered shapes with boxes, silhouettes, semantic and panoptic maps."""

    kind: Literal["shapes.scenes"] = "shapes.scenes"
    num_samples: int = Field(4000, ge=1, description="images to draw")
    vocabulary: Literal[12, 120, 1080] = Field(
        12,
        description="classes of the same images: 12 shapes, 120 with the colour, 1080 with texture and structure too"
        " (fewer in a world with fewer of them)",
    )
    zipf: float = Field(0.0, ge=0, description="exponent of the long tail of the objects' looks; 0: uniform")
    federated: bool = Field(
        False, description="label each image for some classes only, as LVIS does; there are no label maps then"
    )
    max_objects: int = Field(6, ge=1, le=6, description="largest number of objects; all numbers are equally likely")
    scale: tuple[float, float] = Field((0.07, 0.19), description="smallest and largest radius, in image widths")

    makes: ClassVar[type[Artifact]] = AnnotatedImages
    work: ClassVar[str] = "vfm.shapes.scene_datasets:make_scenes"

    @model_validator(mode="after")
    def _ordered(self) -> ShapesScenes:
        low, high = self.scale
        if not 0 < low <= high <= 0.5:
            raise ValueError(f"expected scale with 0 < smallest <= largest <= 0.5, got {low}, {high}")
        return self


STAGES: list[type[Stage]] = [Annotated, ShapesScenes]
