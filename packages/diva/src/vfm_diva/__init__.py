"""DIVA post-training for vfm.

`prior_stage` and `tune_stage` have the stages, `prior_task` and `tune_task` the trainings as a library, `denoiser`,
`space` and `condition` the parts of a generator.
"""

from vfm_diva.prior_stage import DivaPrior
from vfm_diva.timesteps import Timesteps
from vfm_diva.tune_stage import DivaTune

__all__ = ["DivaPrior", "DivaTune", "Timesteps"]
