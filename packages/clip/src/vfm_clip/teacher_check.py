"""Check of a teacher's inputs against its student's."""

from __future__ import annotations

import torch

from vfm.models import PROBES, ClipModel
from vfm.plugin import UserError


def check_teacher(clip: ClipModel, teacher: ClipModel) -> None:
    """Check that a teacher takes the same inputs as its student.

    Image size, context length and tokens must be equal.

    Args:
        clip: The student.
        teacher: Frozen model that the student learns from.

    Raises:
        UserError: If an input differs. The message has both values.
    """
    sizes = clip.preprocess.image_size, teacher.preprocess.image_size
    what = f"{teacher.name} cannot teach {clip.name}"
    if sizes[0] != sizes[1]:
        raise UserError(f"{what}: its image size is {sizes[1]}, the student's is {sizes[0]}")
    if clip.context_length != teacher.context_length:
        raise UserError(
            f"{what}: its context length is {teacher.context_length}, the student's is {clip.context_length}"
        )
    # Compared by what they do, since one tokenizer has several names.
    if not torch.equal(clip.tokenize(PROBES), teacher.tokenize(PROBES)):
        raise UserError(f"{what}: its tokenizer differs from the student's")
