"""Add a target to `eva.pretrain`. Defining the configuration is enough, and this module does not import torch."""

from typing import ClassVar, Literal

from pydantic import Field

from vfm_eva import Target


class Permuted(Target):
    """Predict a teacher's features of another image: a control with the same distribution but unrelated targets."""

    type: Literal["permuted"] = "permuted"
    work: ClassVar[str] = "vfm_permuted_target:PermutedTarget"
    layer: int = Field(-1, description="block of the teacher, from 0; negative values count from the end")
    projected: bool = Field(True, description="projected into the joint space; false: only the final norm")
