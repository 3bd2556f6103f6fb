"""DIVA post-training for vfm.

The names here are configurations, without torch. `prior` trains a small diffusion model, and `tune` uses the feedback
of a frozen one. `generator` assembles a diffusion model from `denoiser`, `networks`, `space` and `condition_map`.
`mllm` trains and evaluates multimodal models. As a library: `prior.prior_task` and `tune.tune_task`.
"""

from vfm_diva.generator.stages import CropSettings, DivaLatents
from vfm_diva.parts.loss_parts import ContrastiveLoss, DenoisingLoss, Loss, ViewLoss
from vfm_diva.parts.network_parts import DenoiserNetwork, FlowTransformer, Mlp, UNet
from vfm_diva.parts.parts import (
    Adapter,
    Anchor,
    Cls,
    Condition,
    CosineAnchor,
    Embedding,
    L2SpAnchor,
    LinearAdapter,
    LogitNormal,
    MlpAdapter,
    NoAdapter,
    NoAnchor,
    Patches,
    PooledPatches,
    RasterPooled,
    RelationalAnchor,
    Stratified,
    Timesteps,
    TrainedAdapter,
    Uniform,
)
from vfm_diva.prior.stages import DivaPrior, PriorCondition
from vfm_diva.tune.stages import DivaTune, Feedback, Prompt

__all__ = [
    "Adapter", "Anchor", "Cls", "Condition", "ContrastiveLoss", "CosineAnchor", "CropSettings", "DenoiserNetwork",
    "DenoisingLoss", "DivaLatents", "DivaPrior", "DivaTune", "Embedding", "Feedback", "FlowTransformer", "L2SpAnchor",
    "LinearAdapter", "LogitNormal", "Loss", "Mlp", "MlpAdapter", "NoAdapter", "NoAnchor", "Patches",
    "PooledPatches", "PriorCondition", "Prompt", "RasterPooled", "RelationalAnchor", "Stratified", "Timesteps",
    "TrainedAdapter", "UNet", "Uniform", "ViewLoss",
]  # fmt: skip
