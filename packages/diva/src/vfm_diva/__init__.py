"""DIVA post-training for vfm.

`prior_stage` and `tune_stage` have the stages, `prior_task` and `tune_task` the trainings as a library. The parts of a
tuning are configurations, one idea a file: `condition`, `adapter`, `timesteps`, `update`, `anchor`. `generator` has the
parts of a diffusion model: `denoiser`, `networks`, `space`, `condition_map`.
"""

from vfm_diva.prior_stage import DivaPrior
from vfm_diva.tune_stage import DivaTune

__all__ = ["DivaPrior", "DivaTune"]
