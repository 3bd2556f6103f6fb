"""Configuration of image-text retrieval."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator

from vfm.eval.base import EncodedEvaluation
from vfm.interfaces import PairDataset, Ref


class Retrieval(EncodedEvaluation):
    """Measure recall at k, from images to captions and from captions to images. Any caption of an image counts."""

    kind: Literal["eval.retrieval"] = "eval.retrieval"
    in_processes: ClassVar[bool] = True
    evaluator: ClassVar[str] = "vfm.eval.retrieval.retrieval:evaluate_retrieval"
    checks: ClassVar[str] = "vfm.eval.retrieval.checks:check_retrieval"
    task: ClassVar[str] = "zeroshot_retrieval"

    data: Ref[PairDataset] = Field(description="images with captions")
    recall_k: list[int] = Field([1, 5, 10], min_length=1, description="values of k for recall@k")
    language: str | None = Field(None, description="key of the captions; default: the dataset's first language")

    @field_validator("recall_k")
    @classmethod
    def _counted_from_one(cls, recall_k: list[int]) -> list[int]:
        if min(recall_k) < 1:
            raise ValueError(f"k must be at least 1, got {min(recall_k)}")
        return sorted(set(recall_k))
