"""Configurations of the stages that draw the synthetic world, such as `shapes.pool`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from vfm.data.synthetic.actions import ACTIONS, Action, turning_shapes
from vfm.data.synthetic.scene import Pattern
from vfm.data.synthetic.world import World
from vfm.interfaces import (
    AnnotatedImages,
    Artifact,
    ChoiceDataset,
    LabeledDataset,
    Pool,
    QuestionDataset,
    Ref,
    Seed,
    Stage,
    VideoDataset,
)


class ShapeImages(Stage):
    """Base of the stages that draw images from a world and a seed into tars in the artifact's folder."""

    world: World = Field(World(), description="distribution of the images and captions")
    num_samples: int = Field(20_000, ge=1, description="images to draw")
    start: int = Field(0, ge=0, description="number of the first sample, to draw other samples of the same seed")
    samples_per_shard: int = Field(1000, ge=1, description="samples per tar (does not change any sample)")
    seed: Seed = Field(0, description="seed of the draws. Sample i depends only on the seed and i")


class ShapesPool(ShapeImages):
    """Draw shapes with web-like captions.

    They have a long tail, partly described attributes, noise, and other languages.
    """

    kind: Literal["shapes.pool"] = "shapes.pool"
    images: Ref[Pool] | None = Field(
        None,
        description="pool with the same seed and world except for the captions. Its images are reused, because drawing"
        " takes most of the time",
    )

    makes: ClassVar[type[Artifact]] = Pool
    work: ClassVar[str] = "vfm.data.synthetic.datasets:make_pool"


class ShapesClasses(ShapeImages):
    """Draw a balanced labelled dataset with every shape in every colour, class names and prompts.

    With `label` the classes are the values of that attribute instead, to probe which attributes features encode.
    """

    kind: Literal["shapes.classes"] = "shapes.classes"
    num_samples: int = Field(2400, ge=1, description="images to draw")
    label: Pattern | None = Field(
        None, description="use the values of this attribute, or the colours, as classes (default: coloured shapes)"
    )

    version: ClassVar[int] = 2
    makes: ClassVar[type[Artifact]] = LabeledDataset
    work: ClassVar[str] = "vfm.data.synthetic.datasets:make_classes"

    @model_validator(mode="after")
    def _possible(self) -> ShapesClasses:
        if self.label:
            check_patterns(self.world, [self.label])
        return self


class ShapesChoices(Stage):
    """Draw pairs as in MMVP.

    A pair is two images that differ in one attribute, with one statement each.
    """

    kind: Literal["shapes.choices"] = "shapes.choices"
    world: World = Field(World(), description="distribution of the images and captions")
    patterns: tuple[Pattern, ...] | None = Field(
        None, min_length=1, description="attributes that a pair may differ in (default: all that vary in the world)"
    )
    pairs_per_pattern: int = Field(100, ge=1, description="pairs for each pattern")
    start: int = Field(0, ge=0, description="number of a pattern's first pair, to draw other pairs of the same seed")
    seed: Seed = Field(0, description="seed of the draws. Pair i of a pattern depends only on the seed and i")

    makes: ClassVar[type[Artifact]] = ChoiceDataset
    work: ClassVar[str] = "vfm.data.synthetic.datasets:make_choices"

    @model_validator(mode="after")
    def _possible(self) -> ShapesChoices:
        check_patterns(self.world, self.patterns or ())
        if not self.world.patterns:
            raise ValueError("nothing varies in this world: no attribute, and only one colour")
        return self


class ShapesQuestions(Stage):
    """Draw questions as in MMVP.

    A pair has two images that differ in one attribute, one question about both, and two options.
    """

    kind: Literal["shapes.questions"] = "shapes.questions"
    world: World = Field(World(), description="distribution of the images")
    families: tuple[Pattern, ...] | None = Field(
        None, min_length=1, description="attributes that the questions are about (default: all that vary in the world)"
    )
    pairs_per_family: int = Field(200, ge=1, description="pairs of images for each attribute")
    split: Literal["train", "test"] = Field("test", description="equal seeds draw other pairs for training and test")
    seed: Seed = Field(0, description="seed of the draws. Pair i of a family depends only on the seed, the split and i")

    makes: ClassVar[type[Artifact]] = QuestionDataset
    work: ClassVar[str] = "vfm.data.synthetic.questions:make_questions"

    @model_validator(mode="after")
    def _possible(self) -> ShapesQuestions:
        check_patterns(self.world, self.families or ())
        if not self.world.patterns:
            raise ValueError("nothing varies in this world: no attribute, and only one colour")
        return self


def check_patterns(world: World, patterns: Iterable[Pattern]) -> None:
    """Check that each pattern varies in a world.

    Raises:
        ValueError: If one does not.
    """
    for pattern in patterns:
        if pattern not in world.patterns:
            raise ValueError(f"{pattern!r} does not vary in this world; choose from {', '.join(world.patterns)}")


class ShapesScenes(ShapeImages):
    """Draw scenes with one to six scattered shapes, with boxes, silhouettes, semantic and panoptic maps."""

    kind: Literal["shapes.scenes"] = "shapes.scenes"
    num_samples: int = Field(4000, ge=1, description="images to draw")
    vocabulary: Literal[12, 120, 1080] = Field(
        12,
        description="classes of the same images: 12 shapes, 120 with the colour, 1080 with texture and structure too"
        " (fewer in a world with fewer of them)",
    )
    zipf: float = Field(0.0, ge=0, description="exponent of the long tail of the objects' looks (0: uniform)")
    federated: bool = Field(
        False, description="label each image for some classes only, as LVIS does, without label maps"
    )
    max_objects: int = Field(6, ge=1, le=6, description="largest number of objects (all numbers are equally likely)")
    scale: tuple[float, float] = Field((0.07, 0.19), description="smallest and largest radius, in image widths")

    makes: ClassVar[type[Artifact]] = AnnotatedImages
    work: ClassVar[str] = "vfm.data.synthetic.scene_datasets:make_scenes"

    @model_validator(mode="after")
    def _ordered(self) -> ShapesScenes:
        low, high = self.scale
        if not 0 < low <= high <= 0.5:
            raise ValueError(f"expected scale with 0 < smallest <= largest <= 0.5, got {low}, {high}")
        return self


class ShapesVideos(ShapeImages):
    """Draw videos of a moving shape among still shapes. Each action is the time reversal of another action.

    Position, angle, size and opacity move along circles, so each frame, and any unordered set of frames, is equally
    likely in both actions of a pair. A model that ignores frame order scores at most 50 % on a pair.
    """

    kind: Literal["shapes.videos"] = "shapes.videos"
    num_samples: int = Field(1000, ge=1, description="videos to draw, cycling through the actions")
    num_frames: int = Field(16, ge=4, le=256, description="frames of a video")
    actions: tuple[Action, ...] = Field(ACTIONS, min_length=2, description="the classes, in this order")
    num_still: int = Field(2, ge=0, le=4, description="largest number of still shapes")
    speed: Annotated[float, Field(gt=0, le=4)] = Field(
        0.75, description="part of the circle that the moving shape completes in a video"
    )
    rate: int = Field(8, ge=1, le=120, description="frames per second of the files")

    makes: ClassVar[type[Artifact]] = VideoDataset
    work: ClassVar[str] = "vfm.data.synthetic.videos:make_videos"

    @model_validator(mode="after")
    def _possible(self) -> ShapesVideos:
        if len(set(self.actions)) < len(self.actions):
            raise ValueError(f"actions must not repeat one, got {', '.join(self.actions)}")
        if self.world.image_size % 2:
            raise ValueError(f"world.image_size must be even for videos, got {self.world.image_size}")
        if not turning_shapes(self.world.shapes) and {"turn right", "turn left"} & set(self.actions):
            raise ValueError("no shape of this world shows a turn; add one with a direction, such as arrow")
        return self
