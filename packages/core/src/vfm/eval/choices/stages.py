"""Configurations of caption choice evaluations."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from vfm.eval.base import EncodedEvaluation
from vfm.interfaces import ChoiceDataset, Ref


class MmvpVlm(EncodedEvaluation):
    """Evaluate MMVP-VLM by its official rule.

    A statement chooses one of two images, and a pair counts if both statements are right. `aligned_pairs` also counts
    pairs whose correct logits have the larger sum.
    """

    version: ClassVar[int] = 4  # since aligned_pairs is reported
    kind: Literal["eval.mmvp_vlm"] = "eval.mmvp_vlm"
    in_processes: ClassVar[bool] = True
    evaluator: ClassVar[str] = "vfm.eval.choices.choices:evaluate_mmvp_vlm"
    task: ClassVar[str] = "mmvp_vlm"

    data: Ref[ChoiceDataset] = Field(description="pairs of two images and two statements")
    prompt: str = Field("a photo of ", description="text before each statement; the default is the authors'")
    diva_scoring: bool = Field(
        False,
        description="also score all models with DIVA's image feature, the class token plus the mean of the patches;"
        " DIVA's authors scored only their own models this way",
    )


class Choices(EncodedEvaluation):
    """Evaluate caption choice of any shape by Winoground's rule (SugarCrepe's for one image). A tie counts as wrong."""

    kind: Literal["eval.choices"] = "eval.choices"
    in_processes: ClassVar[bool] = True
    evaluator: ClassVar[str] = "vfm.eval.choices.choices:evaluate_choices"
    task: ClassVar[str] = "image_caption_selection"

    data: Ref[ChoiceDataset] = Field(description="items of images and statements, of any shape")
    prompt: str = Field("", description="text before each statement")
