"""Configurations of the stages that draw the synthetic shapes: `shapes.pool`, `shapes.classes`, and pairs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from vfm.artifacts import Artifact, ChoiceDataset, LabeledDataset, Pool, QuestionDataset
from vfm.shapes.scene import Pattern
from vfm.shapes.world import World
from vfm.stage import Seed, Stage


class ShapeImages(Stage):
    """Base of the stages that draw images from a world and a seed into tars in the artifact's folder."""

    world: World = Field(World(), description="distribution of the images and captions")
    num_samples: int = Field(20_000, ge=1, description="images to draw")
    samples_per_shard: int = Field(1000, ge=1, description="samples per tar; does not change any sample")
    seed: Seed = Field(0, description="seed of the draws; sample i depends only on it and i")


class ShapesPool(ShapeImages):
    """Draw shapes with web-like captions: a long tail, partly described attributes, noise, other languages."""

    kind: Literal["shapes.pool"] = "shapes.pool"

    makes: ClassVar[type[Artifact]] = Pool
    work: ClassVar[str] = "vfm.shapes.datasets:make_pool"


class ShapesClasses(ShapeImages):
    """Draw a balanced labelled dataset: every shape in every colour, with class names and prompts.

    With `label` the classes are the values of that attribute instead, to probe which attributes features encode.
    """

    kind: Literal["shapes.classes"] = "shapes.classes"
    num_samples: int = Field(2400, ge=1, description="images to draw")
    label: Pattern | None = Field(
        None, description="use the values of this attribute, or the colours, as classes; default: coloured shapes"
    )

    version: ClassVar[int] = 2
    makes: ClassVar[type[Artifact]] = LabeledDataset
    work: ClassVar[str] = "vfm.shapes.datasets:make_classes"

    @model_validator(mode="after")
    def _possible(self) -> ShapesClasses:
        if self.label:
            check_patterns(self.world, [self.label])
        return self


class ShapesChoices(Stage):
    """Draw pairs as in MMVP: two images that differ in one attribute, with one statement each."""

    kind: Literal["shapes.choices"] = "shapes.choices"
    world: World = Field(World(), description="distribution of the images and captions")
    patterns: tuple[Pattern, ...] | None = Field(
        None, min_length=1, description="attributes that a pair may differ in; default: all that vary in the world"
    )
    pairs_per_pattern: int = Field(100, ge=1, description="pairs for each pattern")
    seed: Seed = Field(0, description="seed of the draws; pair i of a pattern depends only on it and i")

    makes: ClassVar[type[Artifact]] = ChoiceDataset
    work: ClassVar[str] = "vfm.shapes.datasets:make_choices"

    @model_validator(mode="after")
    def _possible(self) -> ShapesChoices:
        check_patterns(self.world, self.patterns or ())
        if not self.world.patterns:
            raise ValueError("nothing varies in this world: no attribute, and only one colour")
        return self


class ShapesQuestions(Stage):
    """Draw questions as in MMVP: two images that differ in one attribute, one question about both, two options."""

    kind: Literal["shapes.questions"] = "shapes.questions"
    world: World = Field(World(), description="distribution of the images")
    families: tuple[Pattern, ...] | None = Field(
        None, min_length=1, description="attributes that the questions are about; default: all that vary in the world"
    )
    pairs_per_family: int = Field(200, ge=1, description="pairs of images for each attribute")
    split: Literal["train", "test"] = Field("test", description="equal seeds draw other pairs for training and test")
    seed: Seed = Field(0, description="seed of the draws; pair i of a family depends only on it, the split and i")

    makes: ClassVar[type[Artifact]] = QuestionDataset
    work: ClassVar[str] = "vfm.shapes.questions:make_questions"

    @model_validator(mode="after")
    def _possible(self) -> ShapesQuestions:
        check_patterns(self.world, self.families or ())
        if not self.world.patterns:
            raise ValueError("nothing varies in this world: no attribute, and only one colour")
        return self


def check_patterns(world: World, patterns: Iterable[Pattern]) -> None:
    """Check that each pattern varies in a world.

    Raises:
        ValueError: one does not.
    """
    for pattern in patterns:
        if pattern not in world.patterns:
            raise ValueError(f"{pattern!r} does not vary in this world; choose from {', '.join(world.patterns)}")


STAGES: list[type[Stage]] = [ShapesPool, ShapesClasses, ShapesChoices, ShapesQuestions]
