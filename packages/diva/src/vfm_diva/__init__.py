"""DIVA post-training for vfm.

`stages` and `parts` hold the configurations, without torch. The work is in `prior`, `tune` and `latents`; the trainings
as a library are in `prior_task` and `tune_task`. The parts of a tuning have a file each: `condition`, `adapter`,
`noise`, `loss`, `update`, `anchor`. `generator` assembles a diffusion model from `denoiser`, `networks`, `space` and
`condition_map`.
"""

from vfm_diva.loss_parts import ContrastiveLoss, DenoisingLoss, Loss
from vfm_diva.network_parts import DenoiserNetwork, FlowTransformer, UNet
from vfm_diva.parts import (
    Adapter,
    Anchor,
    Cls,
    Condition,
    CosineAnchor,
    Embedding,
    L2SpAnchor,
    LastBlocks,
    LinearAdapter,
    LogitNormal,
    Lora,
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
    Update,
    WholeTower,
)
from vfm_diva.stages import Crops, DivaLatents, DivaPrior, DivaTune, Feedback, PriorCondition, Prompt

__all__ = [
    "Adapter", "Anchor", "Cls", "Condition", "ContrastiveLoss", "CosineAnchor", "Crops", "DenoiserNetwork",
    "DenoisingLoss", "DivaLatents", "DivaPrior", "DivaTune", "Embedding", "Feedback", "FlowTransformer", "L2SpAnchor",
    "LastBlocks", "LinearAdapter", "LogitNormal", "Lora", "Loss", "MlpAdapter", "NoAdapter", "NoAnchor", "Patches",
    "PooledPatches", "PriorCondition", "Prompt", "RasterPooled", "RelationalAnchor", "Stratified", "Timesteps",
    "TrainedAdapter", "UNet", "Uniform", "Update", "WholeTower",
]  # fmt: skip
