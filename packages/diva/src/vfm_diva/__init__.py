"""DIVA post-training for vfm.

The names here are configurations, without torch. `prior` trains a small diffusion model, and `tune` uses the feedback
of a frozen one. `generator` assembles a diffusion model from `denoiser`, `networks`, `space` and `condition_map`.
`mllm` trains and evaluates multimodal models. As a library: `prior.prior_task` and `tune.tune_task`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
