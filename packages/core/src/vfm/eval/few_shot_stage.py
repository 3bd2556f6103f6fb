"""The stage `eval.few_shot`: k images a class, with what the words of the classes say to start from."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, field_validator

from vfm.artifacts import LabeledDataset
from vfm.data.templates import check_templates
from vfm.eval.feature_stages import FeatureEvaluation
from vfm.stage import Context, Ref, Seed

if TYPE_CHECKING:
    from vfm.eval.judgement import Judgement, Subject


class FewShot(FeatureEvaluation):
    """A softmax classifier from k training images a class, drawn several times; from zero-shot weights if wanted."""

    kind: Literal["eval.few_shot"] = "eval.few_shot"
    # Narrower than the others': of several labels an image there is no k of each.
    train: Ref[LabeledDataset] = Field(  # type: ignore[assignment]
        description="images to draw from, of the classes of `data`"
    )
    data: Ref[LabeledDataset] = Field(description="images to judge on")  # type: ignore[assignment]
    shots: list[int] = Field([1, 2, 4, 8, 16], min_length=1, description="training images a class; a score for each")
    draws: int = Field(3, ge=1, description="times that they are drawn; a score is the mean")
    start: Literal["nothing", "zero_shot"] = Field(
        "nothing", description="zero_shot: the weights start from the text tower's classifier, and are pulled to it"
    )
    templates: list[str] | None = Field(
        None, min_length=1, description="prompts with a {} of start: zero_shot; default: the data set's"
    )
    penalty: float = Field(
        0.1, gt=0, description="pull towards the start: weights move by 2 / penalty at most, in the mean over classes"
    )
    seed: Seed = Field(0, description="of the first draw")

    @field_validator("templates")
    @classmethod
    def _have_a_place(cls, templates: list[str] | None) -> list[str] | None:
        return templates and check_templates(templates)

    @field_validator("shots")
    @classmethod
    def _counted_from_one(cls, shots: list[int]) -> list[int]:
        if min(shots) < 1:
            raise ValueError(f"{min(shots)} images a class are none")
        return sorted(set(shots))

    def judge(self, ctx: Context, models: Mapping[str, Any]) -> tuple[Subject, dict[str, Judgement]]:
        """By `vfm.eval.judges.few_shot`."""
        from vfm.eval.judges.few_shot import FewShotSettings, judge_few_shot

        train, data = ctx.load(self.train), ctx.load(self.data)
        self.check_classes(train, data)
        words = self.start == "zero_shot"
        settings = FewShotSettings(self.shots, self.draws, words, self.penalty, self.templates, self.seed)
        sha256, found = judge_few_shot(ctx, models, train, data, settings, reading=self._reading())
        return self._subject("few_shot", sha256), found
