"""CLIP training for vfm. `vfm_clip.task` has the contrastive task as a library, `vfm_clip.stage` the stage."""

from vfm_clip.stage import ClipTrain

__all__ = ["ClipTrain"]
