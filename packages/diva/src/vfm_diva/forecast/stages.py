"""Configurations of the stages that predict the gain of feedback and compare predictions with gains."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from vfm.plugin import Artifact, ChoiceDataset, ClipCheckpoint, Config, GeneratorCheckpoint, Ref, Report, Seed, Stage
from vfm_diva.parts.parts import LogitNormal, Timesteps
from vfm_diva.parts.presets import Preset


class DivaPredict(Stage):
    """Predict the gain of feedback on each attribute from the generator's knowledge and CLIP's accuracy.

    The generator knows an attribute if it denoises images better with the right statement than with the wrong one of
    their pair. Nothing is trained. The law and its interval come from the recipe `diva_law`.
    """

    kind: Literal["diva.predict"] = "diva.predict"
    clip: Ref[ClipCheckpoint] = Field(description="CLIP model before the feedback")
    generator: Ref[GeneratorCheckpoint] = Field(description="a diva.prior, or a pretrained model with text encoders")
    data: Ref[ChoiceDataset] = Field(description="pairs of two images and two statements")
    prompt: str = Field("a photo of ", description="text before each statement, for CLIP and for pretrained generators")
    preset: Preset | None = Field(
        None, description="preset of the diva.tune whose GPU hours are computed; default: they are not"
    )
    timesteps: Timesteps = Field(LogitNormal(), description="times at which images are noised, 8 for each image")
    seed: Seed = Field(0, description="seed of noise and times")

    makes: ClassVar[type[Artifact]] = Report
    work: ClassVar[str] = "vfm_diva.forecast.predict:predict_gains"


class LawArm(Config):
    """A tuning whose gain was predicted and measured."""

    predicted: Ref[Report] = Field(description="a diva.predict of this CLIP model and this generator, on other pairs")
    before: Ref[ClipCheckpoint] = Field(description="CLIP model before the feedback")
    after: Ref[ClipCheckpoint] = Field(description="CLIP model after the feedback")


class DivaLaw(Stage):
    """Fit the law of feedback to half of the cells, and predict the gains of the other half.

    A cell is an attribute in one arm. The halves alternate like the fields of a chessboard, so that every arm and every
    attribute is in both.
    """

    kind: Literal["diva.law"] = "diva.law"
    measured: Ref[Report] = Field(description="an eval.mmvp_vlm of all models of the arms")
    arms: list[LawArm] = Field(min_length=2, description="feedbacks with different priors or CLIP models")

    makes: ClassVar[type[Artifact]] = Report
    work: ClassVar[str] = "vfm_diva.forecast.law_report:compare_law"

    @model_validator(mode="after")
    def _different_arms(self) -> DivaLaw:
        names = [arm.after for arm in self.arms]
        twice = [name for number, name in enumerate(names) if name in names[:number]]
        if twice:
            raise ValueError(f"arms: expected different models after the feedback, got {twice[0]!r} more than once")
        return self
