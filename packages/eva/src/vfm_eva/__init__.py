"""EVA pre-training for vfm. `vfm_eva.task` has masked feature modelling as a library, `vfm_eva.stage` the stage."""

from vfm_eva.stage import EvaPretrain, Target

__all__ = ["EvaPretrain", "Target"]
