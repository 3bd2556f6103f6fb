"""Configurations of evaluations that need a text tower: zero-shot, retrieval and caption choice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from vfm.artifacts import ChoiceDataset, LabeledDataset, PairDataset, TaggedImages
from vfm.stage import Ref
from vfm.stages.evaluation.base import EncodedEvaluation, Templates


class ZeroShot(EncodedEvaluation):
    """Classify images zero-shot: top-1, top-5 and mean per class recall, or mean average precision of several labels.

    The classifier is the ensemble of the prompt templates, each filled with the class name, or of sentences of a class.
    """

    kind: Literal["eval.zero_shot"] = "eval.zero_shot"
    in_processes: ClassVar[bool] = True
    evaluator: ClassVar[str] = "vfm.eval.zero_shot:evaluate_zero_shot"
    checks: ClassVar[str] = "vfm.stages.evaluation.checks:check_zero_shot"
    task: ClassVar[str] = "zeroshot_classification"

    data: Ref[LabeledDataset | TaggedImages] = Field(description="images with one class or several labels each")
    templates: Templates | None = Field(
        None, min_length=1, description="prompts with a {} for the class name; default: the dataset's"
    )
    prompts: str | None = Field(
        None,
        description="JSON file with sentences of each class, {class: [sentences]}, as CuPL's, in place of templates",
    )
    class_names: list[str] | None = Field(
        None, description="class names by label, for example in another language; default: the dataset's"
    )
    language: str = Field("en", description="language of class names and templates, for the results")
    answers: Literal["all", "present"] = Field(
        "all", description="present: only classes with images can be predicted, as for ImageNet-A and -R"
    )

    @model_validator(mode="after")
    def _one_kind_of_prompts(self) -> ZeroShot:
        if self.prompts and self.templates:
            raise ValueError("prompts has the sentences of each class: omit templates")
        return self

    def sources(self) -> Iterable[str]:
        """Return the file of sentences."""
        return [self.prompts] if self.prompts else []


class Retrieval(EncodedEvaluation):
    """Measure recall at k, images to captions and captions to images; any of an image's captions counts."""

    kind: Literal["eval.retrieval"] = "eval.retrieval"
    in_processes: ClassVar[bool] = True
    evaluator: ClassVar[str] = "vfm.eval.retrieval:evaluate_retrieval"
    checks: ClassVar[str] = "vfm.stages.evaluation.checks:check_retrieval"
    task: ClassVar[str] = "zeroshot_retrieval"

    data: Ref[PairDataset] = Field(description="images with captions")
    recall_k: list[int] = Field([1, 5, 10], min_length=1, description="k of recall@k")
    language: str | None = Field(None, description="key of the captions; default: the dataset's first language")

    @field_validator("recall_k")
    @classmethod
    def _counted_from_one(cls, recall_k: list[int]) -> list[int]:
        if min(recall_k) < 1:
            raise ValueError(f"k must be at least 1, got {min(recall_k)}")
        return sorted(set(recall_k))


class MmvpVlm(EncodedEvaluation):
    """Evaluate MMVP-VLM by its official rule: each statement picks one of two images, a pair counts if both are right.

    `aligned_pairs` also counts the pairs whose right logits have the larger sum.
    """

    version: ClassVar[int] = 4  # since aligned_pairs is reported
    kind: Literal["eval.mmvp_vlm"] = "eval.mmvp_vlm"
    in_processes: ClassVar[bool] = True
    evaluator: ClassVar[str] = "vfm.eval.choices:evaluate_mmvp_vlm"
    task: ClassVar[str] = "mmvp_vlm"

    data: Ref[ChoiceDataset] = Field(description="pairs of two images and two statements")
    prompt: str = Field("a photo of ", description="text before each statement; the default is the authors'")
    diva_scoring: bool = Field(
        False,
        description="also score all models by DIVA's rule, the class token plus the mean of the patches: its authors"
        " compared their models by this rule with others by the official one",
    )


class Choices(EncodedEvaluation):
    """Evaluate caption choice of any shape by Winoground's rule, for one image SugarCrepe's; a tie is an error."""

    kind: Literal["eval.choices"] = "eval.choices"
    in_processes: ClassVar[bool] = True
    evaluator: ClassVar[str] = "vfm.eval.choices:evaluate_choices"
    task: ClassVar[str] = "image_caption_selection"

    data: Ref[ChoiceDataset] = Field(description="items of images and statements, of any shape")
    prompt: str = Field("", description="text before each statement")
