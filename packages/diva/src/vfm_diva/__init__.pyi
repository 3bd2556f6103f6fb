from .generator.stages import (
    CropSettings as CropSettings,
    DivaLatents as DivaLatents,
)
from .parts.loss_parts import (
    ContrastiveLoss as ContrastiveLoss,
    DenoisingLoss as DenoisingLoss,
    Loss as Loss,
    ViewLoss as ViewLoss,
)
from .parts.network_parts import (
    DenoiserNetwork as DenoiserNetwork,
    FlowTransformer as FlowTransformer,
    Mlp as Mlp,
    UNet as UNet,
)
from .parts.parts import (
    Adapter as Adapter,
    Anchor as Anchor,
    Cls as Cls,
    Condition as Condition,
    CosineAnchor as CosineAnchor,
    Embedding as Embedding,
    L2SpAnchor as L2SpAnchor,
    LinearAdapter as LinearAdapter,
    LogitNormal as LogitNormal,
    MlpAdapter as MlpAdapter,
    NoAdapter as NoAdapter,
    NoAnchor as NoAnchor,
    Patches as Patches,
    PooledPatches as PooledPatches,
    RasterPooled as RasterPooled,
    RelationalAnchor as RelationalAnchor,
    Stratified as Stratified,
    Timesteps as Timesteps,
    TrainedAdapter as TrainedAdapter,
    Uniform as Uniform,
)
from .prior.stages import (
    DivaPrior as DivaPrior,
    PriorCondition as PriorCondition,
)
from .tune.stages import (
    DivaTune as DivaTune,
    Feedback as Feedback,
    Prompt as Prompt,
)
