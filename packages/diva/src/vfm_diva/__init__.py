"""DIVA post-training for vfm.

The stages are in `latents_stage`, `prior_stage` and `tune_stage`, the trainings as a library in `prior_task` and
`tune_task`. The parts of a tuning are configurations, one idea a file: `condition`, `adapter`, `timesteps`, `update`,
`anchor`. `generator` has the parts of a diffusion model: `denoiser`, `networks`, `space`, `condition_map`.
"""

from vfm_diva.latents_stage import DivaLatents
from vfm_diva.prior_stage import DivaPrior
from vfm_diva.tune_stage import DivaTune

__all__ = ["DivaLatents", "DivaPrior", "DivaTune"]
