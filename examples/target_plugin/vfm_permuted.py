"""A target of your own for `eva.pretrain`. Defining its configuration adds it to the choices; no torch is imported."""

from typing import ClassVar, Literal

from pydantic import Field

from vfm_eva import Target


class Permuted(Target):
    """A teacher's features of another image, as a control: their distribution stays, and they do not fit the image."""

    type: Literal["permuted"] = "permuted"
    work: ClassVar[str] = "vfm_permuted_target:PermutedTarget"
    layer: int = Field(-1, description="block of the teacher, from 0; negative values count from the end")
    projected: bool = Field(True, description="projected into the joint space; false: only the final norm")
