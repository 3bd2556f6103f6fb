"""DIVA post-training for vfm.

`vfm_diva.stage` has the stages, `prior_task` and `tune_task` the trainings as a library, `denoiser` and `condition`
the parts of a generator.
"""

from vfm_diva.stage import DivaPrior, DivaTune, Timesteps

__all__ = ["DivaPrior", "DivaTune", "Timesteps"]
